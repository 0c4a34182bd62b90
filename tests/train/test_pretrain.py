"""What a run reads before it trains, and what it says of its own speed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from bc2 import recipe
from bc2.errors import IntegrityError, RecipeError
from bc2.model.model_config import ModelConfig
from bc2.pipeline.session import Session
from bc2.registry import Registry, payload, verified
from bc2.train.logs.runs import list_runs


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
        assert row["tokens"] == 512
        assert 0 < row["mfu"] <= 1


SHORT = ["pretrain.length=6 steps", "pretrain.sample_prompts=0"]


def start(*sets: str) -> None:
    loaded = recipe.load("small.toml", [*SHORT, *sets])
    Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The token shards that are read through, as if all had been written long ago."""
    found: list[str] = []
    plain = payload.sha256_file

    def noted(path: Path, *seen: Any) -> str:
        if path.suffix == ".bin":
            found.append(str(path))
        return plain(path, *seen)

    monkeypatch.setattr(payload, "sha256_file", noted)
    monkeypatch.setattr(verified, "_SETTLED_NS", -(10**18))
    return found


def test_a_second_start_reads_only_the_shards_that_changed(small: Path, read: list[str]) -> None:
    tokens = Registry.open().newest("tokens")
    shards = sorted(str(tokens.path / name) for name in tokens.files() if name.endswith(".bin"))
    start("pretrain.seed=1")
    assert sorted(read) == shards
    read.clear()
    start("pretrain.seed=2")
    assert read == []
    os.utime(shards[0])
    start("pretrain.seed=3")
    assert read == shards[:1]
    path = Path(shards[-1])
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        start("pretrain.seed=4")
    assert caught.value.exit_code == 5
    assert caught.value.where == str(path)


def test_settings_that_do_not_fit_are_refused_before_hours_of_reading(
    small: Path, read: list[str]
) -> None:
    with pytest.raises(RecipeError, match="would be read"):
        start("pretrain.length=9000 epochs", "pretrain.max_epochs=2")
    assert read == []
