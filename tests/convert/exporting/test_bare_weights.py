"""``--to safetensors``: the checkpoint's tensors, and nothing else of a framework."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import checkpoint, drawn, shape

from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.registry import Registry

Bc2 = Callable[..., Any]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("model*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("dtype", [None, "bf16", "f16"])
def test_every_tensor(home: Path, bc2: Bc2, dtype: str | None) -> None:
    state = drawn(shape())
    checkpoint(
        Registry.open(), state=state, layout="baichuan", generation=GenerationDefaults(top_k=5)
    )
    done = bc2(
        "convert", "made", "--to", "safetensors", "--json", *(["--dtype", dtype] if dtype else [])
    )
    assert done.code == 0, done.err
    folder = Path(json.loads(done.out)["path"])
    kinds = {None: torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    found = weights_of(folder)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor.to(kinds[dtype])), name
    assert ModelConfig.model_validate_json((folder / "model.json").read_bytes()) == shape()
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.model", "chat.json", "generation.json", "proof.json", "README.md"} <= names


def test_stored_types_are_kept(home: Path, bc2: Bc2) -> None:
    checkpoint(Registry.open(), dtype=torch.bfloat16)
    done = bc2("convert", "made", "--to", "safetensors", "--json")
    assert done.code == 0, done.err
    found = weights_of(Path(json.loads(done.out)["path"]))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert json.loads(done.out)["dtype"] == "bf16"


def test_shards_and_their_index(home: Path, bc2: Bc2) -> None:
    state = drawn(shape())
    checkpoint(Registry.open(), state=state)
    done = bc2("convert", "made", "--to", "safetensors", "--max-shard-size", "100 KB", "--json")
    assert done.code == 0, done.err
    folder = Path(json.loads(done.out)["path"])
    files = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(files) > 2
    index = json.loads((folder / "model.safetensors.index.json").read_bytes())
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], state[name])
    assert index["weight_map"].keys() == state.keys()
    sizes = [path.stat().st_size for path in files]
    largest = max(4 * tensor.numel() for tensor in state.values())
    assert max(sizes) < max(100_000, largest) + 4096


@pytest.mark.parametrize("head", [{"head": "scalar"}, {"head": "classes", "num_classes": 3}])
def test_another_head_leaves_so_where_no_format_has_it(
    home: Path, bc2: Bc2, head: dict[str, Any]
) -> None:
    config = shape(**head)
    checkpoint(Registry.open(), config, name="judge", role="reward")
    # A scalar head is that of a classifier with one label: tests/convert/test_classifiers.py.
    for other in ("gguf",) if config.head == "scalar" else ("llama", "baichuan", "gguf", "qwen2"):
        done = bc2("convert", "judge", "--to", other)
        assert done.code == 2
        assert f"has a {config.head} head" in done.err
        assert "--to safetensors" in done.err
    done = bc2("convert", "judge", "--to", "safetensors", "--json")
    assert done.code == 0, done.err
    assert "score.weight" in weights_of(Path(json.loads(done.out)["path"]))


def test_the_optimizers_state_goes_along_if_asked(home: Path, bc2: Bc2, tmp_path: Path) -> None:
    registry = Registry.open()
    checkpoint(registry)
    done = bc2("convert", "made", "--to", "safetensors", "--optimizer")
    assert done.code == 2
    assert "holds no state of an optimizer" in done.err
    moments = {"moment": torch.arange(6.0)}
    save_file(moments, tmp_path / "optimizer.safetensors")
    running = checkpoint(registry, name="running", beside=[tmp_path / "optimizer.safetensors"])
    plain = bc2("convert", running.ref, "--to", "safetensors", "--json")
    assert "optimizer.safetensors" not in {
        path.name for path in Path(json.loads(plain.out)["path"]).iterdir()
    }
    done = bc2("convert", running.ref, "--to", "safetensors", "--optimizer", "--json")
    assert done.code == 0, done.err
    kept = load_file(Path(json.loads(done.out)["path"]) / "optimizer.safetensors")
    assert torch.equal(kept["moment"], moments["moment"])
