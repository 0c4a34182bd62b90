"""The toy finds the same losses on two ranks as on one, whatever the layout and micro-batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy_runs import STEPS, bc2, saved, train

from bc2.registry import Artifact
from bc2.train.snapshot import STREAM

LAYOUTS = ["zero=2", "tensor=2", "sequence=2"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_find_the_losses_of_one(toy: Path, undisturbed, layout: str) -> None:
    """With other micro-batches than one rank has."""
    bc2(
        "toy", "toy.toml", "--nproc", "2",
        "--set", f"parallel.{layout}", "--set", "toy.micro_batch=2",
    )  # fmt: skip
    equal_runs(undisturbed("toy"), saved(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 4, 8])
@pytest.mark.parametrize("layout", [*LAYOUTS, "zero=0", "zero=1", "zero=3"])
@pytest.mark.parametrize("name", ["toy", "critic"])
def test_ranks_in_every_layout(
    toy: Path, undisturbed, name: str, layout: str, micro_batch: int
) -> None:
    verb = {"toy": "toy", "critic": "toy_critic"}[name]
    bc2(
        verb, f"{name}.toml", "--nproc", "2",
        "--set", f"parallel.{layout}", "--set", f"{verb}.micro_batch={micro_batch}",
    )  # fmt: skip
    equal_runs(undisturbed(name), saved(STEPS))


@pytest.mark.parametrize(
    "micro_batch", ["16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("1", '"auto"'))]
)
def test_the_micro_batch_changes_nothing(
    toy: Path, toy_path: str, monkeypatch: pytest.MonkeyPatch, undisturbed, micro_batch: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", toy_path)  # for the process that tries what fits
    equal_runs(undisturbed("toy"), train("toy", f"toy.micro_batch={micro_batch}"))


def equal_runs(one: Artifact, two: Artifact) -> None:
    """The same data, and numbers that are equal but for the order of sums."""
    first, second = (each.file(STREAM).read_bytes() for each in (one, two))
    assert first == second
    logs = [each.file("metrics.jsonl").read_text().splitlines() for each in (one, two)]
    assert len(logs[0]) == len(logs[1]) == STEPS + 4
    for ours, theirs in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            close = isinstance(value, float)
            assert theirs[name] == (pytest.approx(value, rel=1e-5) if close else value), name
