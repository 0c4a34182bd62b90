"""The loop in real runs: a rollback, failed saves, masked batches, old checkpoints.

What it does in every case is tested without a model in test_loop_alone.py.
"""

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
from bc2.train.checkpoint import Saver
from bc2.train.objective import Loss
from bc2.train.pretrain.next_token import NextToken

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
