"""What the tests of faults share: runs of twelve steps that things happen to.

A run is 12 steps of 8 samples in two micro-batches, saved at steps 4 and 8 and
evaluated at 0, 8 and 12.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warmed

from bc2 import recipe
from bc2.data.loader import Batch, Loader
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.train.objective import Loss
from bc2.train.pretrain.next_token import NextToken

STEPS, ROWS = 12, 8
SHORT = [f"pretrain.length={STEPS} steps", "pretrain.sample_tokens=4"]

Train = Callable[..., Artifact]
Hook = Callable[[dict[int, Callable[[], None]]], None]


@pytest.fixture
def train(small: Path) -> Train:
    """Train in this process, in the working directory."""

    def run(*overrides: str, fresh: bool = False) -> Artifact:
        session = Session(Registry.open(), fresh=fresh)
        loaded = recipe.load("small.toml", [*SHORT, *overrides])
        return session.obtain("checkpoint", loaded, command=["bc2"])

    return run


@pytest.fixture(scope="session")
def straight(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The same with nothing happening to it, in a home of its own; each only once."""
    made: dict[tuple[str, ...], Artifact] = {}

    def run(*overrides: str) -> Artifact:
        if overrides not in made:
            home = tmp_path_factory.mktemp("straight") / "home"
            shutil.copytree(prepared_home / "home", home)
            session = Session(Registry.open(home))
            loaded = recipe.load(prepared_home / "small.toml", [*SHORT, *overrides])
            made[overrides] = session.obtain("checkpoint", loaded, command=["bc2"])
        return made[overrides]

    return run


def watch(monkeypatch: pytest.MonkeyPatch, change: Callable[[range, Loss], Loss]) -> None:
    """Have a function see the samples and the loss of each micro-batch that is trained on."""
    make, call = Loader.batch, NextToken.__call__
    samples: dict[bytes, range] = {}

    def batch(self: Loader, first: int, count: int) -> Batch:
        made = make(self, first, count)
        samples[made.tokens.tobytes()] = range(first, first + count)
        return made

    def objective(self: NextToken, model: Any, batch: Batch, clock: Any = None) -> Loss:
        loss = call(self, model, batch, clock)
        return change(samples[batch.tokens.tobytes()], loss) if torch.is_grad_enabled() else loss

    monkeypatch.setattr(Loader, "batch", batch)
    monkeypatch.setattr(NextToken, "__call__", objective)


@pytest.fixture
def at_sample(monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Have things happen when the micro-batch that holds a sample is trained on, once each."""

    def install(actions: dict[int, Callable[[], None]]) -> None:
        todo = dict(actions)

        def change(samples: range, loss: Loss) -> Loss:
            for sample in samples:
                todo.pop(sample, lambda: None)()
            return loss

        watch(monkeypatch, change)

    return install


class _Scaled(torch.autograd.Function):
    """The same loss with another gradient."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient * ctx.factor, None


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make what is trained on a sample bad, each time: the loss, or its gradient alone."""

    def install(*bad: int, add: float = 0.0, gradient: float = 1.0) -> None:
        def change(samples: range, loss: Loss) -> Loss:
            if not any(sample in samples for sample in bad):
                return loss
            return Loss(_Scaled.apply(loss.total + add, gradient), loss.sums)

        watch(monkeypatch, change)

    return install


#: Runs bc2 with some code before, and some when a micro-batch with a sample is trained on.
DRIVER = """\
import json, os, signal, sys, threading, time
import torch
from bc2.__main__ import main
from bc2.data.loader import Loader
from bc2.data.shards import TokenShards
from bc2.train.pretrain.next_token import NextToken

setup, actions, *arguments = sys.argv[1:]
actions = json.loads(actions)
make, call = Loader.batch, NextToken.__call__
samples = {}

def batch(self, first, count):
    made = make(self, first, count)
    samples[made.tokens.tobytes()] = range(first, first + count)
    return made

def objective(self, model, batch, clock=None):
    loss = call(self, model, batch, clock)
    if torch.is_grad_enabled():
        for sample in samples[batch.tokens.tobytes()]:
            exec(actions.get(str(sample), ""), globals())
    return loss

Loader.batch, NextToken.__call__ = batch, objective
exec(setup)
main(arguments)
"""

Process = subprocess.Popen[str]
Launch = Callable[..., Process]


@pytest.fixture
def launch(small: Path) -> Iterator[Launch]:
    """Start `bc2 pretrain` in another process, a warmed one (tests/warmed).

    Args (of what is returned):
        overrides: as of `train`.
        setup: code to run first.
        actions: code to run when a sample's micro-batch is trained on.
        environment: over this process's.
    """
    driver = small / "driver.py"
    driver.write_text(DRIVER)
    started: list[Process] = []

    def start(
        *overrides: str, setup: str = "", actions: dict[int, str] | None = None,
        environment: dict[str, str] | None = None, folder: Path = small,
    ) -> Process:  # fmt: skip
        sets = [word for override in (*SHORT, *overrides) for word in ("--set", override)]
        command = [sys.executable, "-P", str(driver), setup, json.dumps(actions or {})]
        process = warmed.Popen(
            [*command, "pretrain", "small.toml", "--quiet", *sets],
            cwd=folder,
            env={**os.environ, "BC2_HOME": str(folder / "home"), **(environment or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
