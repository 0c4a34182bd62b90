"""Which rank of a run this process is, and what it reports to its launcher."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bc2.errors import Bc2Error
from bc2.process.cores import usable_cores
from bc2.process.launcher_variables import Place, read_place
from bc2.process.signals import LAUNCHED

#: The launcher's process.
LAUNCHER = "BC2_LAUNCHER"

#: Names the file to which one rank of each machine writes the number of steps made.
STEPS = "BC2_STEPS_FILE"

#: The name of a thread that waits for other ranks.
JOINING = "joining"

#: In the message of a rank that fails only because another one is gone.
LOST = "lost the other ranks"

#: How long ranks and machines wait for each other to come, by default, seconds.
RENDEZVOUS_TIMEOUT_S = 600

#: torch's agent sets it: the file for a rank's error.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def world_size() -> int:
    """Ranks of the run that this process was started in; 1 if it was started by hand."""
    return place().world


def rank() -> int:
    """This process's rank, from 0."""
    return place().rank


def local_rank() -> int:
    """Its number among the ranks of its machine."""
    return place().local


def place() -> Place:
    """Which rank this process is. Raises: UsageError if the environment is wrong."""
    return read_place(os.environ)


def threads_of_each(ranks: int) -> int:
    """Threads of each rank, so that all ranks together use every core of this machine once."""
    return max(1, len(usable_cores()) // ranks)


def first() -> bool:
    """Whether this process speaks for the run."""
    return world_size() == 1 or rank() == 0


def follow_srun() -> Place:
    """Set the variables that libraries read from those that srun sets; which rank this is."""
    here = place()
    if here.world > 1:
        numbers = {"WORLD_SIZE": here.world, "RANK": here.rank, "LOCAL_RANK": here.local}
        os.environ.update({name: str(number) for name, number in numbers.items()})
    return here


def export_gpu(index: int) -> None:
    """Say in LOCAL_RANK which GPU this rank has, for libraries that take it as a GPU's index.

    `local_rank`, in this process and those it starts, goes on to be the rank's number.
    """
    number = local_rank()
    if number != index:
        os.environ["BC2_LOCAL_RANK"] = str(number)
    os.environ["LOCAL_RANK"] = str(index)


@contextmanager
def name_launcher(world: int) -> Iterator[None]:
    """Have errors that depend on the number of ranks say which variables made it so.

    Args:
        world: the number they depend on. It may be another than that of this process.
    """
    try:
        yield
    except Bc2Error as error:
        here = place()
        if here.world == world > 1 and LAUNCHED not in os.environ:
            why = f"this is one of {world} ranks because of {here.said_by}; {here.alone}"
            error.todo = f"{error.todo}; {why}" if error.todo else why
        raise


def end_with_launcher() -> None:
    """Kill this rank when its launcher is gone, however that ended."""
    # Not by `os.getppid`: the launcher may be gone already.
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def restarted() -> bool:
    """Whether the launcher has started this run's ranks before."""
    return place().restarts > 0


def launched_with() -> list[str]:
    """The options that this rank's launcher was started with, for the command to go on with."""
    return shlex.split(os.environ.get(LAUNCHED, ""))


def report_step(step: int) -> None:
    """Write the number of steps made where the launcher reads it before a restart."""
    stream = _steps()
    if stream is not None:
        os.pwrite(stream, f"{step:20}".encode(), 0)


@functools.cache
def _steps() -> int | None:
    path = os.environ.get(STEPS)
    wanted = LAUNCHED in os.environ and path and local_rank() == 0
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if path and wanted else None


def report_error(text: str, *, lasting: bool = False) -> bool:
    """Hand the text of an error to the launcher; False if this rank must print it itself.

    Args:
        lasting: the same error would come after a restart.
    """
    path = os.environ.get(_ERROR_FILE)
    if LAUNCHED not in os.environ or not path:
        return False
    # This process ends anyway, and half a file could not be read.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    message = {
        "message": text,
        "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))},
        "lasting": lasting,
    }
    aside = Path(f"{path}.{os.getpid()}")
    aside.write_text(json.dumps({"message": message}), encoding="utf-8")
    os.replace(aside, path)
    return True


class RankFailed(Bc2Error):
    """The error of a rank, with the text that the rank itself wrote."""

    def __init__(self, said: str, exit_code: int):
        super().__init__(said)
        self.said = said
        self.exit_code = exit_code
