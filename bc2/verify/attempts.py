"""`bc2 pretrain` as processes: started, killed with all their ranks, and waited for."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bc2.errors import RunFailed
from bc2.ranks import RankFailed
from bc2.verify.scratch import ScratchHome

#: How often to look whether a run has come to where it is to be killed, seconds.
_LOOK_S = 0.001

#: How long killed processes may take to be gone, seconds.
_GONE_S = 30.0


@dataclass(frozen=True)
class Kill:
    """A SIGKILL that met all ranks in training."""

    step: int
    """The last step that was logged."""
    saving: bool
    """Whether a checkpoint was being written."""


class TrainingProcess:
    """One start of a run and of its ranks."""

    def __init__(self, recipe: Path, home: ScratchHome, ranks: int):
        self.home = home
        self._before = len(home.timing("step"))
        command = [sys.executable, "-m", "bc2", "pretrain", str(recipe), "--quiet"]
        command += ["--nproc", str(ranks)] if ranks > 1 else []
        self._log = home.path / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=home.environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            RankFailed: what it failed with, as it said it.
            RunFailed: something killed it.
        """
        code = self.process.wait()
        said = self._log.read_text(errors="replace")
        _, error, told = said.rpartition("error: ")
        if code > 0:
            raise RankFailed((error + told).strip() or f"a tried run ended with {code}", code)
        if code < 0:
            raise RunFailed(f"a tried run was killed by {signal.Signals(-code).name}")

    def made(self) -> int:
        """The last step that this start logged; 0 before."""
        rows = self.home.timing("step")[self._before :]
        return int(rows[-1]["step"]) if rows else 0

    def reaches(self, holds: Callable[[], bool]) -> bool:
        """Whether something came to hold before the run ended."""
        while self.process.poll() is None:
            if holds():
                return True
            time.sleep(_LOOK_S)
        return False

    def kill(self) -> None:
        """SIGKILL it and every process that it started, and wait until none runs."""
        family: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            family = [*top.children(recursive=True), top]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        until = time.monotonic() + _GONE_S
        while any(map(_runs, family)) and time.monotonic() < until:
            time.sleep(_LOOK_S)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        # A zombie holds nothing any more; who adopted it may never ask for it.
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def attempt(recipe: Path, home: ScratchHome, ranks: int) -> Iterator[TrainingProcess]:
    """Start a run; whatever is left of it at the end is killed."""
    made = TrainingProcess(recipe, home, ranks)
    try:
        yield made
    finally:
        made.kill()


def finish(recipe: Path, home: ScratchHome, ranks: int) -> None:
    """Run to the end."""
    with attempt(recipe, home, ranks) as one:
        one.finish()


def disturb(
    recipe: Path, home: ScratchHome, ranks: int, *, kills: int, steps: int, rng: random.Random
) -> list[Kill]:
    """Kill a run at moments spread over its steps, every other one while it saves; then finish.

    Raises:
        RunFailed: it was over before it could be killed.
    """
    hits = [
        hit
        for number in range(kills)
        if (hit := _hit(recipe, home, ranks, _moment(number, kills, steps, rng), rng, number % 2))
    ]
    if not hits:
        raise RunFailed(
            f"the run of {steps} steps was over before it could be killed",
            todo="give it more --steps",
        )
    finish(recipe, home, ranks)
    return hits


def _moment(number: int, kills: int, steps: int, rng: random.Random) -> int:
    """A step in this kill's share of the run, before its last quarter."""
    share = 0.75 * steps / kills
    return 1 + int(share * (number + rng.random()))


def _hit(
    recipe: Path, home: ScratchHome, ranks: int, step: int, rng: random.Random, saves: int
) -> Kill | None:
    with attempt(recipe, home, ranks) as one:
        if not one.reaches(lambda: one.made() >= step):
            one.finish()
            return None
        if saves:
            one.reaches(home.saving)
        else:
            time.sleep(rng.uniform(0, _step_s(home)))
        one.kill()
    if one.process.returncode >= 0:
        one.finish()
        return None
    return Kill(int(home.timing("step")[-1]["step"]), home.saving())


def _step_s(home: ScratchHome) -> float:
    return float(home.timing("step")[-1]["step_s"])
