"""Runs of a training verb in processes: started, killed with all their ranks, and waited for."""

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

#: Seconds between two looks at a run that is to be killed at some step.
_LOOK_S = 0.001

#: How long killed processes may take to end, seconds.
_GONE_S = 30.0


@dataclass(frozen=True)
class Kill:
    """A SIGKILL that all ranks got while they trained."""

    step: int
    """The last step that was logged."""
    saving: bool
    """Whether a checkpoint was being written."""


@dataclass(frozen=True)
class TriedRun:
    """A run of a training verb in a home of its own."""

    verb: str
    recipe: Path
    home: ScratchHome
    ranks: int


class TrainingProcess:
    """One attempt at a run, with all its ranks."""

    def __init__(self, run: TriedRun):
        self.home = home = run.home
        self._before = len(home.timing("step"))
        command = [sys.executable, "-P", "-m", "bc2", run.verb, str(run.recipe), "--quiet"]
        command += ["--nproc", str(run.ranks)] if run.ranks > 1 else []
        self._log = home.path / "stderr"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=home.environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def finish(self) -> None:
        """Wait until it ends.

        Raises:
            RankFailed: it failed; with the error that it printed.
            RunFailed: a signal killed it.
        """
        code = self.process.wait()
        text = self._log.read_text(errors="replace", encoding="utf-8")
        _, error, told = text.rpartition("error: ")
        if code > 0:
            raise RankFailed((error + told).strip() or f"a tried run ended with {code}", code)
        if code < 0:
            raise RunFailed(f"a tried run was killed by {signal.Signals(-code).name}")

    def made(self) -> int:
        """The last step that this attempt logged; 0 if none."""
        rows = self.home.timing("step")[self._before :]
        return int(rows[-1]["step"]) if rows else 0

    def reaches(self, holds: Callable[[], bool]) -> bool:
        """Wait until `holds()` is true; False if the run ended before."""
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
def training_process(run: TriedRun) -> Iterator[TrainingProcess]:
    """Start an attempt; what is left of it at the end of the block is killed."""
    started = TrainingProcess(run)
    try:
        yield started
    finally:
        started.kill()


def train_to_end(run: TriedRun) -> None:
    """Run to the end."""
    with training_process(run) as attempt:
        attempt.finish()


def train_with_kills(run: TriedRun, *, kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """Kill a run at moments spread over its steps, every other time while it saves; then finish.

    Raises:
        RunFailed: it was over before it could be killed.
    """
    made: list[Kill] = []
    for number in range(kills):
        step = _random_step(number, kills, steps, rng)
        kill = _kill_at(run, step, rng, while_saving=number % 2 == 1)
        made += [kill] if kill else []
    if not made:
        raise RunFailed(
            f"the run of {steps} steps was over before it could be killed",
            todo="give it more --steps",
        )
    train_to_end(run)
    return made


def _random_step(number: int, kills: int, steps: int, rng: random.Random) -> int:
    """A step in this kill's share of the run, before its last quarter."""
    share = 0.75 * steps / kills
    return 1 + int(share * (number + rng.random()))


def _kill_at(
    run: TriedRun, step: int, rng: random.Random, *, while_saving: bool
) -> Kill | None:  # fmt: skip
    """Kill one attempt after a step; None if it ended before."""
    with training_process(run) as attempt:
        if not attempt.reaches(lambda: attempt.made() >= step):
            attempt.finish()
            return None
        if while_saving:
            attempt.reaches(run.home.saving)
        else:
            time.sleep(rng.uniform(0, _step_s(run.home)))
        attempt.kill()
    if attempt.process.returncode >= 0:
        attempt.finish()
        return None
    return Kill(int(run.home.timing("step")[-1]["step"]), run.home.saving())


def _step_s(home: ScratchHome) -> float:
    return float(home.timing("step")[-1]["step_s"])
