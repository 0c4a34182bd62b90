"""Runs of the toy that tests make and look at, all in the working directory's home."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import warmed

from bc2 import recipe
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry

STEPS, PAIRS = 12, 16
BC2 = [sys.executable, "-P", "-m", "bc2"]


def train(name: str = "toy", *overrides: str) -> Artifact:
    """Train in this process, in the working directory."""
    return Session(Registry.open()).obtain(
        "checkpoint", recipe.load(f"{name}.toml", overrides), command=["bc2"]
    )


def bc2(*words: str, warm: bool = True) -> str:
    """What a command prints, run as a process in the working directory."""
    environment = dict(os.environ)
    if not warm:
        environment["PYTHONPATH"] = environment.pop("WARMED_PATH")
    done = warmed.run(
        [*BC2, *words], env=environment, capture_output=True, text=True, children=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def rows(event: str = "step") -> list[dict[str, Any]]:
    """Rows of the only run's metrics.jsonl."""
    (folder,) = Registry.open().runs.iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def same(one: Artifact, two: Artifact) -> None:
    for name in one.files():
        assert one.file(name).read_bytes() == two.file(name).read_bytes(), name
    assert one.digest == two.digest


def saved(step: int) -> Artifact:
    checkpoints = Registry.open().list("checkpoint")
    (found,) = [a for a in checkpoints if a.position and a.position.step == step]
    return found
