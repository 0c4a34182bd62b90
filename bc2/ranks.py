"""Which rank of a run this process is, and what it reports to its launcher."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path

from bc2.errors import Bc2Error
from bc2.signals import LAUNCHED

#: The launcher's process.
LAUNCHER = "BC2_LAUNCHER"

#: Names the file to which one rank of each machine writes the number of steps made.
STEPS = "BC2_STEPS_FILE"

#: In the message of a rank that fails only because another one is gone.
LOST = "lost the other ranks"

#: torch's agent sets these: the file for a rank's error, and how often the ranks were restarted.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"

#: What torchrun, the deepspeed launcher and `bc2 --nproc` set; then what srun sets.
_NAMES = {
    "world": ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"),
    "rank": ("RANK", "SLURM_PROCID"),
    "local": ("LOCAL_RANK", "SLURM_LOCALID"),
}


def world_size() -> int:
    """Ranks of the run that this process was started in; 1 if it was started by hand."""
    return _read("world", 1)


def rank() -> int:
    """This process's rank, from 0."""
    return _read("rank", 0)


def local_rank() -> int:
    """Its number among the ranks of its machine: which GPU it takes."""
    return _read("local", 0)


def threads_of_each(ranks: int) -> int:
    """Threads of each rank, so that all ranks together use every core of this machine once."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def first() -> bool:
    """Whether this process speaks for the run."""
    return world_size() == 1 or rank() == 0


def follow_srun() -> None:
    """Set the variables that torch reads from those that srun sets.

    The batch script must set MASTER_ADDR and MASTER_PORT.
    """
    if world_size() > 1:
        for theirs, srun in _NAMES.values():
            os.environ.setdefault(theirs, os.environ.get(srun, "0"))


def _read(what: str, default: int) -> int:
    for name in _NAMES[what]:
        if name in os.environ:
            return int(os.environ[name])
    return default


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
    return int(os.environ.get(_RESTARTS, "0")) > 0


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
