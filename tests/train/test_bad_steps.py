"""NaN, Inf and spikes: the weights never see them, and everything says where they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2.errors import RunFailed
from bc2.registry import Registry
from bc2.train.logs.log_rows import METRICS, TIMING, read_rows
from bc2.train.objective import Loss
from bc2.train.pretrain import heldout
from bc2.train.pretrain.next_token import NextToken
from bc2.train.snapshot import Snapshot

#: Every step is saved, and all stay.
ALL = ["pretrain.checkpoint_every=1 steps", "pretrain.keep_checkpoints=0"]


def run_folder() -> Path:
    (folder,) = Registry.open().runs.iterdir()
    return folder


def snapshot(step: int) -> Snapshot:
    (found,) = [
        artifact
        for artifact in Registry.open().list("checkpoint")
        if artifact.position and artifact.position.step == step and not artifact.finished
    ]
    return Snapshot.load(found)


@pytest.mark.parametrize(
    ("fault", "reason", "settings"),
    [
        ({"add": float("nan")}, "loss is nan", []),
        ({"gradient": float("inf")}, "gradient norm is", []),
        ({"add": 4e4}, "nats above the median", ["pretrain.guard.window=4"]),
    ],
)
def test_a_bad_step_is_named_and_changes_nothing(
    train, poison, capsys, fault: dict[str, float], reason: str, settings: list[str]
) -> None:
    poison(52, **fault)  # in the second micro-batch of step 7
    artifact = train(*ALL, *settings)
    (row,) = [row for row in read_rows(run_folder() / METRICS) if row["event"] == "skip"]
    assert (row["step"], row["samples"]) == (7, [48, 55])
    assert reason in row["reason"]
    assert sum(row["sources"].values()) == 8
    told = ", ".join(f"{name} {count}" for name, count in row["sources"].items())
    assert (
        f"{row['reason']} at step 7, samples 48 to 55 ({told}): skipped" in capsys.readouterr().err
    )
    (timed,) = [row for row in read_rows(run_folder() / TIMING) if row["event"] == "bad"]
    assert (timed["step"], timed["samples"], timed["sources"]) == (7, [48, 55], row["sources"])
    before, after, next_one = snapshot(6), snapshot(7), snapshot(8)
    assert (after.state.step, after.state.samples, after.state.bad) == (7, 56, 1)
    assert next_one.state.bad == 0
    for kind in ("weights", "optimizer"):
        old, new = getattr(before, kind), getattr(after, kind)
        assert set(old) == set(new)
        assert all(torch.equal(old.whole(name), new.whole(name)) for name in old)
    one, two = after.weights, next_one.weights
    assert not all(torch.equal(one.whole(name), two.whole(name)) for name in one)
    assert artifact.finished


def test_the_sources_are_those_of_the_samples(train, poison) -> None:
    """Against the mixture itself, asked for the same samples."""
    import numpy as np

    from bc2.data.mixture import Mixture
    from bc2.data.shards import TokenShards

    poison(16, add=float("nan"))
    train()
    (row,) = [row for row in read_rows(run_folder() / METRICS) if row["event"] == "skip"]
    shards = TokenShards.open(Registry.open().newest("tokens").path)
    windows = {s: (shards.num_tokens("train", s) - 1) // 64 for s in shards.sources("train")}
    mixture = Mixture(windows, None, 0)
    ids, _, _ = mixture.locate(np.arange(16, 24))
    counts = np.bincount(ids, minlength=2)
    assert row["sources"] == {
        name: int(count) for name, count in zip(mixture.sources, counts, strict=True) if count
    }


def test_a_higher_limit_goes_on_to_the_same_end(train, straight, poison) -> None:
    """Where the guard ends the run, nothing of it is in what was saved."""
    poison(*range(40, 64), add=float("nan"))  # steps 6, 7 and 8
    with pytest.raises(RunFailed, match="without progress: 2") as caught:
        train("pretrain.guard.max_bad=2")
    assert caught.value.where == "step 7, samples 48 to 55"
    (row,) = [row for row in read_rows(run_folder() / TIMING) if row["event"] == "fail"]
    assert (row["step"], row["samples"], row["saved"]) == (7, [48, 55], 6)
    last = list(read_rows(run_folder() / METRICS))[-1]
    assert (last["event"], last["step"], last["samples"]) == ("stop", 7, [48, 55])
    made = train("pretrain.guard.max_bad=9")
    assert made.digest == straight("pretrain.guard.max_bad=9").digest
    rows = map(json.loads, made.file(METRICS).read_bytes().splitlines())
    assert [row["step"] for row in rows if row["event"] == "skip"] == [6, 7, 8]


def spoil(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make the held-out loss of one evaluation, counted from 0, not a number."""
    plain, seen = heldout.heldout_loss, []

    def loss(*args: Any) -> dict[str, float]:
        seen.append(1)
        measured = plain(*args)
        if len(seen) - 1 != number:
            return measured
        return {**measured, "heldout_loss": float("nan"), "bits_per_byte": float("nan")}

    monkeypatch.setattr(heldout, "heldout_loss", loss)


def test_a_held_out_nan_at_the_end_is_never_finished(train, straight, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        spoil(patch, 2)
        with pytest.raises(RunFailed, match="held-out loss is nan after the last step"):
            train()
    checkpoints = Registry.open().list("checkpoint")
    assert not any(artifact.finished for artifact in checkpoints)
    assert [a.position.step for a in checkpoints if a.position] == [12, 8]
    last = [row for row in read_rows(run_folder() / METRICS) if row["event"] == "eval"][-1]
    assert (last["step"], last["heldout_loss"]) == (12, "nan")
    assert train().digest == straight().digest


def test_weights_that_are_not_finite_end_in_an_error(train, monkeypatch) -> None:
    """Not by the guard, which looks at losses: what it let through meets the evaluation."""
    plain = NextToken.__call__

    def call(self: NextToken, model: Any, batch: Any, clock: Any = None) -> Loss:
        if not torch.is_grad_enabled():
            return plain(self, model, batch, clock)
        loss = plain(self, model, batch, clock)
        with torch.no_grad():
            model.lm_head.weight[5] = float("nan")
        return loss

    monkeypatch.setattr(NextToken, "__call__", call)
    with pytest.raises(RunFailed):
        train()
    assert not any(artifact.finished for artifact in Registry.open().list("checkpoint"))


def test_a_run_of_bad_steps_alone_is_never_finished(train, poison) -> None:
    """Fewer of them than the guard bears: what it would publish is what it began with."""
    poison(*range(24), add=float("nan"))
    with pytest.raises(RunFailed, match="every one of the 3 steps was bad"):
        train("pretrain.length=3 steps", "pretrain.schedule.warmup=1 steps")
    assert not any(artifact.finished for artifact in Registry.open().list("checkpoint"))
