"""Direct preference optimisation as a run: what it makes, resumes, shares and refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from preference_runs import stop_at_row
from sft_runs import obtain

from bc2 import recipe
from bc2.align.dpo import reference_logprobs
from bc2.errors import DataError, Interrupted, RefError, RunFailed
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.train.logs.log_rows import METRICS, read_rows


def rows_of(artifact: Artifact, event: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(artifact.file(METRICS)) if row["event"] == event]


def test_a_model_learns_to_prefer_and_the_reference_is_shared(
    preference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = obtain("dpo.toml", "dpo.length=2 epochs")
    assert made.role == "chat"
    first, *_, last = rows_of(made, "eval")
    assert first["heldout_accuracy"] == pytest.approx(0.5, abs=0.3)
    assert abs(first["heldout_reward_margin"]) < 1e-5
    assert last["heldout_accuracy"] > 0.95
    assert last["heldout_reward_margin"] > 0.1
    assert made.manifest.facts["preference"]["pairs"] == last["heldout_pairs"]
    warned = [row["code"] for row in rows_of(made, "warning")]
    assert set(warned) <= {"both-fall", "longer-answers"}
    registry = Registry.open()
    (stored,) = registry.list("logprobs")
    assert set(stored.manifest.parents) == {
        registry.resolve("pairs/preferred", "pairs").digest,
        registry.resolve("checkpoint/small", "checkpoint").digest,
    }
    capsys.readouterr()
    obtain("dpo.toml", "dpo.length=2 steps", "dpo.beta=0.3", "name=other")
    assert registry.list("logprobs") == [stored]
    assert "computing log-probabilities" not in capsys.readouterr().err


def test_a_signal_in_a_step_ends_in_the_same_bits(
    preference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = obtain("dpo.toml")
    registry = Registry.open()
    for artifact in [*registry.list("checkpoint", "preferred"), *registry.list("logprobs")]:
        registry.remove(artifact)
    shutil.rmtree(preference / "home" / "runs")
    with monkeypatch.context() as stopping:
        stop_at_row(stopping, 40)
        with pytest.raises(Interrupted):
            obtain("dpo.toml")
    assert obtain("dpo.toml").digest == straight.digest


def test_adapters_switched_off_are_the_reference(preference: Path) -> None:
    made = obtain("dpo.toml", "dpo.lora.rank=4", "dpo.length=4 epochs")
    assert made.role == "adapter"
    assert not Registry.open().list("logprobs")
    first, *_, last = rows_of(made, "eval")
    assert first["heldout_reward_margin"] == 0.0
    assert first["heldout_accuracy"] == 0.5
    assert last["heldout_accuracy"] > 0.9


def test_the_gate_stops_a_run_whose_reference_is_not_its_beginning(
    preference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = reference_logprobs.answer_log_probs
    monkeypatch.setattr(
        reference_logprobs, "answer_log_probs", lambda model, batch: plain(model, batch) * 1.0001
    )
    with pytest.raises(RunFailed, match="policy and reference are one model"):
        obtain("dpo.toml")
    assert not Registry.open().list("checkpoint", "preferred")


def test_another_reference_is_printed_and_other_data_refused(
    preference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = obtain("dpo.toml", "dpo.length=2 steps")
    capsys.readouterr()
    obtain("dpo.toml", "dpo.length=2 steps", f"dpo.init={first.ref}", "name=second",
           "dpo.reference=checkpoint/small")  # fmt: skip
    assert "policy and reference are two models" in capsys.readouterr().err
    (stored,) = Registry.open().list("logprobs")
    with pytest.raises(DataError, match="log-probabilities of other data"):
        obtain("dpo.toml", "pairs.heldout_fraction=0.3", f"dpo.reference_logprobs={stored.ref}")


def test_named_log_probabilities_of_another_precision_are_refused(preference: Path) -> None:
    obtain("dpo.toml", "dpo.length=1 steps", "dpo.precision=bf16", "dpo.eval_pairs=0")
    (stored,) = Registry.open().list("logprobs")
    with pytest.raises(DataError, match="computed in bf16, and this run computes in fp32"):
        obtain("dpo.toml", f"dpo.reference_logprobs={stored.ref}")


def test_beginning_anew_removes_nothing_where_what_is_named_is_missing(
    preference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopping:
        stop_at_row(stopping, 90)
        with pytest.raises(Interrupted):
            obtain("dpo.toml")
    before = Registry.open().list("checkpoint", "preferred")
    assert before
    loaded = recipe.load("dpo.toml", ["dpo.reference_logprobs=logprobs/none"])
    anew = Session(Registry.open(), fresh=True)
    with pytest.raises(RefError):
        anew.obtain("checkpoint", loaded, command=["bc2"])
    assert Registry.open().list("checkpoint", "preferred") == before
