"""The model that answers: nothing is loaded before it is needed, and it must fit its tokenizer."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2.errors import DataError, IntegrityError, UsageError
from bc2.evaluate.model_holder import ModelHolder
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import ScoreRequest
from bc2.model import store
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE

CONFIG = EngineConfig(cache_bytes=1 << 22)


def publish(
    registry: Registry, shape: ModelConfig, tokenizer: Tokenizer | None, name: str = "other"
) -> Artifact:
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    draft = Draft("checkpoint", name, "0" * 64, position=Position(1, 1), role="base")
    with registry.stage(draft) as staged:
        if tokenizer is not None:
            (staged.path / TOKENIZER_FILE).write_bytes(tokenizer.model)
        save_model(staged.path, shape, model.state_dict())
        return staged.publish()


def test_facts_need_no_model(
    checkpoint: Artifact, made_model: Transformer, made_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("bc2.generate.load.load_model", None)
    holder = ModelHolder.on(checkpoint, "cpu", "bf16", CONFIG)
    assert holder.tokenizer.digest == made_tokenizer.digest
    assert holder.shape == made_model.config
    assert holder.window == made_model.config.context_length
    assert (holder.dtype, holder.device.type, holder.wanted_device) == (
        torch.bfloat16, "cpu", "cpu",
    )  # fmt: skip
    holder.close()


def test_one_engine_over_the_published_weights(holder: ModelHolder, made_model: Any) -> None:
    assert holder.engine is holder.engine
    assert holder.engine.runner.model is holder.model
    assert holder.engine.config == CONFIG
    state = holder.model.state_dict()
    expected = made_model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    (score,) = holder.engine.score([ScoreRequest([5], [6, 7])])
    assert score.total < 0


def test_each_rank_takes_another_gpu(checkpoint: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    holder = ModelHolder.on(checkpoint, "cuda", "bf16", CONFIG)
    assert (str(holder.device), holder.wanted_device) == ("cuda:3", "cuda")
    assert str(ModelHolder.on(checkpoint, "cuda:1", "bf16", CONFIG).device) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="rank 3 is number 3 on its machine"):
        ModelHolder.on(checkpoint, "cuda", "bf16", CONFIG)
    with pytest.raises(UsageError, match="no such device: tpu"):
        ModelHolder.on(checkpoint, "tpu", "bf16", CONFIG)


def test_a_tokenizer_of_a_larger_vocabulary_is_not_the_models(
    registry: Registry, made_model: Transformer, made_tokenizer: Tokenizer
) -> None:
    small = made_model.config.model_copy(update={"vocab_size": made_tokenizer.vocab_size - 1})
    holder = ModelHolder.on(publish(registry, small, made_tokenizer), "cpu", "fp32", CONFIG)
    with pytest.raises(DataError, match="has 544 pieces and its model 543 tokens"):
        _ = holder.tokenizer
    # A model may have more rows than there are pieces: they are there for speed.
    padded = made_model.config.model_copy(update={"vocab_size": 576})
    artifact = publish(registry, padded, made_tokenizer, "padded")
    assert ModelHolder.on(artifact, "cpu", "fp32", CONFIG).tokenizer.vocab_size == 544


def test_a_checkpoint_without_a_tokenizer(registry: Registry, made_model: Transformer) -> None:
    holder = ModelHolder.on(publish(registry, made_model.config, None), "cpu", "fp32", CONFIG)
    with pytest.raises(DataError, match=TOKENIZER_FILE):
        _ = holder.tokenizer


@pytest.mark.parametrize("part", ["tokenizer", "shape"])
def test_files_that_are_not_what_was_published(
    checkpoint: Artifact, tmp_path: Path, part: str
) -> None:
    copy = dataclasses.replace(checkpoint, path=tmp_path / "copy")
    shutil.copytree(checkpoint.path, copy.path)
    path = copy.path / (TOKENIZER_FILE if part == "tokenizer" else store.CONFIG)
    path.chmod(0o644)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        getattr(ModelHolder.on(copy, "cpu", "fp32", CONFIG), part)
