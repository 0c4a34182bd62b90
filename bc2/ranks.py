"""Which of a run's processes this is, from what its launcher says."""

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

#: Set for ranks that `bc2.launch` started: they leave their errors to it.
LAUNCHED = "BC2_LAUNCHED"

#: Names the file in which a rank of each machine says how many steps are made.
STEPS = "BC2_STEPS_FILE"

#: What a rank says when it fails only because another one is gone.
LOST = "lost the other ranks"

#: Where torch's agent lets a rank say what it failed with, and how often it began.
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
    """Threads that leave each of so many ranks its share of this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def first() -> bool:
    """Whether this process speaks for the run."""
    return world_size() == 1 or rank() == 0


def follow_srun() -> None:
    """Say what srun said by the names that torch reads.

    MASTER_ADDR and MASTER_PORT are the batch script's to set.
    """
    if world_size() > 1:
        for theirs, srun in _NAMES.values():
            os.environ.setdefault(theirs, os.environ.get(srun, "0"))


def _read(what: str, default: int) -> int:
    for name in _NAMES[what]:
        if name in os.environ:
            return int(os.environ[name])
    return default


def follow_launcher() -> None:
    """End with the launcher, however it ends: a rank alone would train on for nobody."""
    if LAUNCHED in os.environ:
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


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


def tell_step(step: int) -> None:
    """How far the run is, for a launcher on this machine that wonders whether to go on."""
    stream = _steps()
    if stream is not None:
        os.pwrite(stream, f"{step:20}".encode(), 0)


@functools.cache
def _steps() -> int | None:
    path = os.environ.get(STEPS)
    wanted = LAUNCHED in os.environ and path and local_rank() == 0
    return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if path and wanted else None


def leave_word(text: str, *, lasting: bool = False) -> bool:
    """What this rank failed with, for `launch` to say; False if it must say it itself.

    Args:
        lasting: starting the ranks again would not help.
    """
    path = os.environ.get(_ERROR_FILE)
    if LAUNCHED not in os.environ or not path:
        return False
    # It ends anyway, and half a word would be none.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    message = {
        "message": text,
        "extraInfo": {"py_callstack": "", "timestamp": str(int(time.time()))},
        "lasting": lasting,
    }
    aside = Path(f"{path}.{os.getpid()}")
    aside.write_text(json.dumps({"message": message}))
    os.replace(aside, path)
    return True


class RankFailed(Bc2Error):
    """What a rank said, as it said it."""

    def __init__(self, said: str, exit_code: int):
        super().__init__(said)
        self.said = said
        self.exit_code = exit_code
