"""What a run says of its own speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bc2 import recipe
from bc2.model.model_config import ModelConfig
from bc2.pipeline.session import Session
from bc2.registry import Registry
from bc2.train.runs import list_runs


def test_a_step_has_the_flops_of_its_tokens_however_they_are_computed(small: Path) -> None:
    """By micro-batches, and with activations computed again: neither is more of the model."""
    changed = ["length=6 steps", "micro_batch=1", "activation_checkpointing=1"]
    loaded = recipe.load("small.toml", [f"pretrain.{setting}" for setting in changed])
    Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])
    (run,) = list_runs(Registry.open())
    steps = [row for row in run.timing() if row["event"] == "step"]
    assert len(steps) == 6
    flops = 512 * loaded.get(ModelConfig).flops_per_token(64)
    for row in steps:
        assert row["flops"] * row["step_s"] == pytest.approx(flops, rel=1e-3)
        assert row["tokens_per_s"] * row["step_s"] == pytest.approx(512, rel=1e-3)
        assert 0 < row["mfu"] <= 1
