"""Training a reward model as a run: what it makes, resumes and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_runs import stop_at_row
from sft_runs import obtain, write_rows

from bc2.errors import DataError, Interrupted, RecipeError
from bc2.registry import Artifact, Registry
from bc2.train.logs.log_rows import METRICS, read_rows


def rows_of(artifact: Artifact, event: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(artifact.file(METRICS)) if row["event"] == event]


def test_a_base_becomes_a_reward_model(preference: Path) -> None:
    made = obtain("reward.toml", "reward.length=2 epochs")
    base = Registry.open().resolve("checkpoint/small", "checkpoint")
    assert made.role == "reward"
    assert base.digest in made.manifest.parents
    first, *_, last = rows_of(made, "eval")
    assert last["heldout_accuracy"] == made.manifest.facts["heldout_accuracy"] > 0.95
    assert last["heldout_loss"] < 0.4 < first["heldout_loss"]
    facts = made.manifest.facts
    assert facts["score_scale"] > 0
    assert np.isfinite(facts["score_centre"])
    assert facts["preference"]["pairs"] == last["heldout_pairs"]
    assert obtain("reward.toml", "reward.length=2 epochs").digest == made.digest


def test_a_signal_in_a_step_ends_in_the_same_bits(
    preference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = obtain("reward.toml")
    registry = Registry.open()
    for artifact in registry.list("checkpoint", "judge"):
        registry.remove(artifact)
    shutil.rmtree(preference / "home" / "runs")
    with monkeypatch.context() as stopping:
        stop_at_row(stopping, 40)
        with pytest.raises(Interrupted):
            obtain("reward.toml")
    assert obtain("reward.toml").digest == straight.digest


def test_adapters_are_trained_with_the_head(preference: Path) -> None:
    made = obtain("reward.toml", "reward.lora.rank=4", "reward.length=4 epochs")
    assert made.role == "adapter"
    assert made.manifest.facts["heldout_accuracy"] > 0.9


def test_alpha_needs_scores(preference: Path) -> None:
    with pytest.raises(RecipeError, match="no source of the pairs has scores"):
        obtain("reward.toml", "reward.alpha=0.1")
    with pytest.raises(RecipeError, match="the source has no scores"):
        obtain("reward.toml", "reward.alpha_of={made=0.1}")
    with pytest.raises(RecipeError, match="no source of the pairs is called 'other'"):
        obtain("reward.toml", "reward.alpha_of={other=0.1}")


def test_what_does_not_fit_is_one_clear_message(preference: Path) -> None:
    rows = [{"prompt": "word " * 150, "chosen": "yes", "rejected": "no"}]
    write_rows(preference / "pairs.jsonl", rows)
    options = ("pairs.heldout_fraction=0",)
    with pytest.raises(DataError, match="do not fit into a row") as caught:
        obtain("reward.toml", *options)
    assert "pairs.jsonl, row 1" in str(caught.value.where)
    assert "sequence_length" in str(caught.value.todo)
    with pytest.raises(DataError, match="no pair is left"):
        obtain("reward.toml", *options, "reward.too_long=drop")
