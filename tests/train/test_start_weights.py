"""A checkpoint's weights to begin with: only its files of weights are read, and each is checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bc2.errors import DataError, IntegrityError, RecipeError
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.parallel.sharding import TensorShard
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.train.start_weights import open_start_weights

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_layers=1, num_heads=2,
    context_length=8,
)  # fmt: skip


def drawn() -> dict[str, Tensor]:
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(3))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def published(tmp_path: Path, weights: dict[str, Tensor] | None, dropped: str = "") -> Artifact:
    draft = Draft("checkpoint", "made", stage_key("checkpoint", 1, {}, []), role="base")
    with Registry.open(tmp_path / "home").stage(draft) as staged:
        if weights is not None:
            save_model(staged.path, CONFIG, weights)
            if dropped:
                left = {name: tensor for name, tensor in weights.items() if name != dropped}
                save_file(left, staged.path / "model.safetensors")
        save_file({"step.x": torch.zeros(1)}, staged.path / "optimizer.safetensors")
        return staged.publish()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def test_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in drawn().items()}
    found = open_start_weights(published(tmp_path, weights), CONFIG, 7)
    for name, whole in weights.items():
        read = found.read(name, TensorShard(tuple(whole.shape)), 0, whole.numel())
        assert torch.equal(read, whole.flatten())
    assert not found.draws_head


def test_a_damaged_file_of_weights_is_seen_and_of_states_is_not_read(tmp_path: Path) -> None:
    artifact = published(tmp_path, drawn())
    flip(artifact.path / "optimizer.safetensors")
    open_start_weights(artifact, CONFIG, 7)
    flip(artifact.path / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        open_start_weights(artifact, CONFIG, 7)


def test_a_checkpoint_that_is_not_what_it_says_and_one_that_does_not_fit(tmp_path: Path) -> None:
    artifact = published(tmp_path, drawn(), dropped="model.norm.weight")
    with pytest.raises(IntegrityError, match=r"model\.norm\.weight is missing"):
        open_start_weights(artifact, CONFIG, 7)
    wider = CONFIG.model_copy(update={"hidden_size": 32})
    with pytest.raises(RecipeError, match=r"embed_tokens\.weight is \[24, 16\], not \[24, 32\]"):
        open_start_weights(published(tmp_path / "b", drawn()), wider, 7)


def test_an_artifact_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights to start from"):
        open_start_weights(published(tmp_path, None), CONFIG, 7)


def test_adapters_that_nothing_says_what_they_are_are_refused(tmp_path: Path) -> None:
    draft = Draft("checkpoint", "lone", stage_key("checkpoint", 1, {}, []), role="adapter")
    with Registry.open(tmp_path / "home").stage(draft) as staged:
        save_model(staged.path, CONFIG, drawn())
        alone = {"model.layers.0.mlp.up_proj.adapter.down": torch.zeros(2, 16)}
        save_file(alone, staged.path / "model.safetensors")
        artifact = staged.publish()
    with pytest.raises(DataError, match=r"checkpoint/lone holds adapters and no adapter\.json"):
        open_start_weights(artifact, CONFIG, 7)
