"""The loop when things go wrong: bad steps, failed saves, masked batches."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2 import recipe
from bc2.data.loader import Batch, Loader
from bc2.errors import ResourceError, RunFailed
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.train.checkpoint import Saver, reading_order
from bc2.train.log_rows import METRICS, read_rows
from bc2.train.objective import Loss
from bc2.train.pretrain.next_token import NextToken
from bc2.train.snapshot import Snapshot

SHORT = ["pretrain.length=12 steps", "pretrain.sample_tokens=4"]

Poison = Callable[[Batch, Loss], Loss]


def train(*overrides: str) -> tuple[Artifact, list[dict[str, Any]]]:
    session = Session(Registry.open())
    loaded = recipe.load("small.toml", [*SHORT, *overrides])
    artifact = session.obtain("checkpoint", loaded, command=["bc2"])
    return artifact, events(artifact)


def events(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[int, float]], None]]:
    """Replace the loss of given optimizer steps (by order of training batches) by a value."""
    plain = NextToken.__call__
    seen = {"batches": 0}

    def install(bad: dict[int, float]) -> None:
        def call(self: NextToken, model: Any, batch: Batch, clock: Any = None) -> Loss:
            loss = plain(self, model, batch, clock)
            if not torch.is_grad_enabled():
                return loss
            step = seen["batches"] // 2  # two micro-batches a step
            seen["batches"] += 1
            if step not in bad:
                return loss
            value = loss.total * 0 + bad[step] * batch.num_labels
            return Loss(value, loss.sums)

        monkeypatch.setattr(NextToken, "__call__", call)

    return install


def test_nan_is_skipped_and_named(
    small: Path, poison: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    poison({5: float("nan")})
    artifact, rows = train()
    (skip,) = [row for row in rows if row["event"] == "skip"]
    assert (skip["step"], skip["samples"]) == (6, [40, 47])
    assert "loss is nan" in skip["reason"]
    assert sum(skip["sources"].values()) == 8
    assert set(skip["sources"]) <= {"docs", "code"}
    told = ", ".join(f"{name} {count}" for name, count in skip["sources"].items())
    said = f"loss is nan at step 6, samples 40 to 47 ({told}): skipped"
    assert said in capsys.readouterr().err
    steps = [row["step"] for row in rows if row["event"] == "step"]
    assert steps == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    weights = Snapshot.load(artifact).weights
    assert all(torch.isfinite(weight).all() for weight in map(weights.whole, weights))


def test_a_spike_is_skipped_once_the_window_is_full(small: Path, poison: Any) -> None:
    poison({2: 50.0, 8: 50.0})
    _, rows = train("pretrain.guard.window=4")
    (skip,) = [row for row in rows if row["event"] == "skip"]
    assert skip["step"] == 9
    assert "above the median" in skip["reason"]


def test_rollback_goes_back_and_leaves_the_data_out(small: Path, poison: Any) -> None:
    poison({6: float("inf")})
    _, rows = train('pretrain.guard.action="rollback"')
    (rollback,) = [row for row in rows if row["event"] == "rollback"]
    # saved at step 4, bad at step 7: samples of steps 5, 6 and 7 are left out
    assert (rollback["step"], rollback["from_step"]) == (4, 7)
    assert rollback["samples"] == [32, 55]
    steps = [(row["step"], row["samples"]) for row in rows if row["event"] == "step"]
    assert steps[3] == (4, [24, 31])
    assert steps[4] == (5, [56, 63])
    assert [step for step, _ in steps] == list(range(1, 13))


def test_rollback_before_the_first_checkpoint(small: Path, poison: Any) -> None:
    poison({1: float("nan")})
    _, rows = train('pretrain.guard.action="rollback"')
    (rollback,) = [row for row in rows if row["event"] == "rollback"]
    assert (rollback["step"], rollback["samples"]) == (0, [0, 15])


def test_stop_ends_the_run_and_keeps_the_checkpoint(small: Path, poison: Any) -> None:
    poison({6: float("nan")})
    with pytest.raises(RunFailed, match="loss is nan") as caught:
        train('pretrain.guard.action="stop"')
    assert caught.value.where == "step 7, samples 48 to 55"
    kept = Registry.open().list("checkpoint")
    assert sorted(one.position.step for one in kept if one.position) == [4, 6]
    (folder,) = Registry.open().runs.iterdir()
    row = list(read_rows(folder / METRICS))[-1]
    assert (row["event"], row["step"], row["samples"]) == ("stop", 7, [48, 55])
    # what is saved knows nothing of the bad step, so that it can be met anew
    furthest = max(kept, key=reading_order)
    assert [one["event"] for one in events(furthest)][-1] == "step"
    assert Snapshot.load(furthest).state.bad == 0


def test_bad_data_without_end_stops_the_run(small: Path, poison: Any) -> None:
    poison(dict.fromkeys(range(100), float("nan")))
    with pytest.raises(RunFailed, match="without progress: 3"):
        train("pretrain.guard.max_bad=3")


def test_endless_rollbacks_stop_the_run(small: Path, poison: Any) -> None:
    poison({step: float("nan") for step in range(1, 100, 2)})
    with pytest.raises(RunFailed, match="without progress: 4"):
        train("pretrain.guard.max_bad=4", 'pretrain.guard.action="rollback"')


def test_a_full_disk_while_saving_ends_the_run(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("bc2.train.snapshot.write_fragments", full)
    with pytest.raises(ResourceError, match="disk full"):
        train()
    registry = Registry.open()
    assert registry.list("checkpoint") == []
    assert list((registry.home / "staging").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_disk_that_is_really_full_while_saving(small: Path) -> None:
    """What safetensors raises then is no OSError: it must end in exit 6 all the same."""
    folder = small / "home" / "artifacts" / "checkpoint"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ResourceError, match="disk full"):
            train()
        assert Registry.open().list("checkpoint") == []
        assert [path for path in folder.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_batch_without_labels_is_an_error(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Loader.batch

    def masked(self: Any, first: int, count: int) -> Batch:
        from dataclasses import replace

        made = plain(self, first, count)
        labels = made.labels.copy()
        labels[:] = -100
        return replace(made, labels=labels, num_labels=0)

    monkeypatch.setattr(Loader, "batch", masked)
    with pytest.raises(RunFailed, match="no supervised token in samples 0 to 7"):
        train()


def test_old_checkpoints_go_and_tagged_ones_stay(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Saver._drop_old

    def tag_first(self: Saver) -> None:
        assert self.latest is not None
        if self.latest.position is not None and self.latest.position.step == 2:
            self.registry.tag(self.latest, "keep")
        plain(self)

    monkeypatch.setattr(Saver, "_drop_old", tag_first)
    train("pretrain.checkpoint_every=2 steps")
    positions = [a.position.step for a in Registry.open().list("checkpoint") if a.position]
    assert sorted(positions) == [2, 10, 12]


def test_heldout_loss_is_what_a_plain_evaluation_gives(small: Path) -> None:
    """Against transformers-free arithmetic: full logits in float64, window by window."""
    import math

    import numpy as np

    from bc2.data.loader import heldout_batches
    from bc2.data.shards import TokenShards
    from bc2.model.store import load_model
    from bc2.tokenizer.tokenizer import Tokenizer

    artifact, rows = train("pretrain.z_loss=0")
    model = load_model(artifact.path, dtype=torch.float64)
    registry = Registry.open()
    tokens = next(a for a in registry.parents(artifact) if a.kind == "tokens")
    pieces = Tokenizer.load(artifact.file("tokenizer.model"))
    nats, count, size = 0.0, 0, 0
    for index, batch in enumerate(heldout_batches(TokenShards.open(tokens.path), 64, 4)):
        if index == 2048 // (64 * 4):
            break
        flat = torch.from_numpy(batch.tokens).flatten()
        with torch.no_grad():
            hidden = model(flat, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
            logs = torch.log_softmax(model.logits(hidden), -1)
        labels = batch.labels.flatten()
        kept = np.flatnonzero(labels >= 0)
        nats -= float(logs[kept, labels[kept]].sum())
        count += len(kept)
        size += sum(len(pieces.decode_bytes([int(i)])) for i in labels[kept])
    last = [row for row in rows if row["event"] == "eval"][-1]
    assert last["heldout_tokens"] == count
    assert last["heldout_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert last["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_rows_are_written_as_often_as_asked_and_at_the_end(small: Path) -> None:
    artifact, rows = train("pretrain.log_every=5", "pretrain.eval_tokens=0")
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["step"] for row in steps] == [5, 10, 12]
    # Of that step alone, 8 samples each.
    assert [row["samples"] for row in steps] == [[32, 39], [72, 79], [88, 95]]
    assert artifact.position is not None
    assert artifact.position.step == 12
