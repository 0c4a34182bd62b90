"""Runs on pairs on two ranks: the same numbers as on one, with a stored reference and without."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sft_runs import obtain

from bc2.registry import Registry

LAYOUTS = ("data=2", "zero=3", "tensor=2", "sequence=2", "zero=2")
RUNS = {
    "reward": ("reward.toml", "reward.alpha=0"),
    "dpo": ("dpo.toml", "dpo.beta=0.2"),
    "dpo, adapters": ("dpo.toml", "dpo.lora.rank=4"),
    "reward, adapters": ("reward.toml", "reward.lora.rank=4"),
}
FACTS = ("heldout_loss", "heldout_accuracy")


def on_two_ranks(folder: Path, layout: str, name: str, recipe: str, *settings: str) -> str:
    verb = recipe.removesuffix(".toml")
    place = [] if layout == "data=2" else [f"parallel.{layout}"]
    words = [word for one in (*settings, *place, f"name={name}") for word in ("--set", one)]
    done = subprocess.run(
        [sys.executable, "-m", "bc2", verb, recipe, "--nproc", "2", "--quiet", *words],
        cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def check(folder: Path, layout: str, run: str) -> None:
    recipe, *settings = RUNS[run]
    verb = recipe.removesuffix(".toml")
    short = [*settings, f"{verb}.length=6 steps", f"{verb}.optimizer.learning_rate=1e-4"]
    alone = obtain(recipe, *short, "name=alone").manifest.facts
    registry = Registry.open()
    for artifact in registry.list("logprobs"):
        registry.remove(artifact)  # so that the ranks compute them together
    ref = on_two_ranks(folder, layout, "together", recipe, *short)
    found = registry.resolve(ref, "checkpoint").manifest.facts
    for name in FACTS:
        assert found[name] == pytest.approx(alone[name], rel=1e-5), (layout, run, name)


def test_a_reference_that_two_ranks_compute(preference: Path) -> None:
    check(preference, "zero=3", "dpo")


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "run"), itertools.product(LAYOUTS, RUNS))
def test_every_layout(preference: Path, layout: str, run: str) -> None:
    check(preference, layout, run)
