"""Adapters in a run: trained while the base is frozen, saved alone, resumed beside the base."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bc2 import recipe
from bc2.data.loader import Loader
from bc2.errors import Interrupted
from bc2.model.adapters import is_adapters
from bc2.parallel.state import Stored
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.train.logs.log_rows import METRICS, read_rows
from bc2.train.training_settings import TrainingSettings

ADAPTED = """\
base = "small.toml"
name = "adapted"

[adapted]
length = "8 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
checkpoint_every = "2 steps"
eval_every = "4 steps"
eval_tokens = 2048
sample_prompts = 0
optimizer = { learning_rate = 3e-2 }
schedule = { warmup = "2 steps" }
lora = { rank = 2, alpha = 4, targets = ["W_pack", "up_proj"] }
"""


def train(name: str, *overrides: str) -> Artifact:
    loaded = recipe.load(name, overrides)
    return Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])


@pytest.fixture
def base(toy: Path) -> Artifact:
    """A base model, and adapted.toml that begins with it."""
    made = train("small.toml", "pretrain.length=8 steps")
    (toy / "adapted.toml").write_text(f'{ADAPTED}init = "{made.digest}"\n')
    return made


def heldout(artifact: Artifact) -> list[float]:
    rows = read_rows(artifact.file(METRICS))
    return [row["heldout_loss"] for row in rows if row["event"] == "eval"]


def test_adapters_are_trained_saved_alone_and_resumed(
    base: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train("adapted.toml")
    found = heldout(straight)
    # It begins as the base, for B is zero then, and becomes another model.
    assert found[0] == heldout(base)[-1]
    assert len(set(found)) == 3
    saved = Stored.open([straight.path / "model.safetensors"]).shapes
    assert saved
    assert all(map(is_adapters, saved))
    assert straight.manifest.role == "adapter"
    assert base.digest in straight.manifest.parents
    settings = TrainingSettings.of(recipe.load("adapted.toml"))
    files = ("model.safetensors", "optimizer.safetensors")
    size = sum((straight.path / name).stat().st_size for name in files)
    assert settings.checkpoint_bytes < size < settings.checkpoint_bytes + 12_000  # headers

    for artifact in Registry.open().list("checkpoint", "adapted"):
        Registry.open().remove(artifact)
    plain = Loader.batch

    def batch(self: Loader, first: int, count: int) -> object:
        if first == 44:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, first, count)

    with monkeypatch.context() as stopping:
        stopping.setattr(Loader, "batch", batch)
        with pytest.raises(Interrupted):
            train("adapted.toml")
    (stopped, *_) = Registry.open().list("checkpoint", "adapted", finished=False)
    assert stopped.position is not None
    assert 0 < stopped.position.step < 8
    assert train("adapted.toml").digest == straight.digest
