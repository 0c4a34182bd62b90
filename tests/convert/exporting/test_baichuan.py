"""``--to baichuan`` is the release: its tensors to the bit, and what the model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_baichuan
import made_json_tokenizers
import pytest
import torch
import transformers
from exported import their_greedy, their_logits, write
from made_hf_models import WINDOW, original
from remote_code import load, load_tokenizer
from safetensors.torch import load_file
from small_checkpoints import SMALL, checkpoint, drawn

from bc2.convert.exporting.baichuan import plan_baichuan, readers_of
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.importing.import_model import import_model
from bc2.errors import UsageError
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling
from bc2.model.store import load_config
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.usefixtures("modules")

Exported = Callable[[str], tuple[Artifact, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A release, imported and written again; made once."""
    made: dict[str, tuple[Artifact, Path]] = {}

    def get(name: str) -> tuple[Artifact, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            original(name).write(folder / name)
            artifact = import_model(Registry.open(folder / "home"), folder / name)
            write(artifact, folder / "out", plan_baichuan)
            made[name] = artifact, folder / "out"
        return made[name]

    return get


def ids_of(count: int, rows: int = 640) -> list[int]:
    return torch.randint(rows, (count,), generator=torch.Generator().manual_seed(count)).tolist()


@pytest.mark.parametrize("name", made_baichuan.RELEASES)
def test_each_tensor_is_the_release_to_the_bit(exported: Exported, name: str) -> None:
    found = load_file(exported(name)[1] / "model.safetensors")
    expected = {n: t for n, t in original(name).state.items() if "inv_freq" not in n}
    assert found.keys() == expected.keys()
    for path, tensor in expected.items():
        assert found[path].dtype == tensor.dtype
        assert torch.equal(found[path], tensor), path


@pytest.mark.parametrize("name", made_baichuan.RELEASES)
def test_transformers_says_what_the_release_says(exported: Exported, name: str) -> None:
    model = load(exported(name)[1])
    ids = ids_of(100)
    expected = original(name).logits(ids).float()
    torch.testing.assert_close(their_logits(model, ids), expected, rtol=0, atol=1e-4)
    model.generation_config = transformers.GenerationConfig()  # its own has a penalty
    said = their_greedy(model, ids[:20], 64)
    assert said == original(name).greedy(ids[:20], 64)
    assert len(set(said)) > 16, "too uniform to show anything"


@pytest.mark.parametrize("name", made_baichuan.RELEASES)
def test_imported_again_it_is_the_same(exported: Exported, name: str, tmp_path: Path) -> None:
    artifact, folder = exported(name)
    again = import_model(Registry.open(tmp_path), folder)
    found, expected = (
        {entry.path: entry.sha256 for entry in one.manifest.files} for one in (again, artifact)
    )
    assert found == expected
    assert again.role == artifact.role


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_rounded_as_asked(exported: Exported, dtype: Any, tmp_path: Path) -> None:
    artifact, _ = exported("baichuan2-7b")
    write(artifact, tmp_path / "out", plan_baichuan, dtype)
    model = load(tmp_path / "out", dtype="auto")
    named = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert model.dtype == named
    for name, tensor in original("baichuan2-7b").state.items():
        assert torch.equal(model.get_parameter(name), tensor.to(named)), name


def test_several_files(exported: Exported, tmp_path: Path) -> None:
    artifact, _ = exported("baichuan2-13b")
    plan = write(artifact, tmp_path / "out", plan_baichuan, limit=40_000)
    assert len(plan.sizes) > 2
    ids = ids_of(30)
    found = their_logits(load(tmp_path / "out"), ids)
    torch.testing.assert_close(
        found, original("baichuan2-13b").logits(ids).float(), rtol=0, atol=1e-4
    )


SHAPES = {
    "any width": {},
    "alibi": {"position": "alibi"},
    "plain head": {"norm_head": False},
    "grouped": {"num_kv_heads": 2, "position": "alibi"},
    "grouped, one": {"num_kv_heads": 1},
    "wide heads": {"head_dim": 24, "num_kv_heads": 2, "position": "alibi"},
    "narrow heads": {"head_dim": 6},
    "more rows": {"vocab_size": 700, "norm_eps": 1e-5, "initializer_range": 0.01},
}


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES)
def test_any_shape_comes_back(settings: dict[str, Any], tmp_path: Path) -> None:
    config = ModelConfig(**{**SMALL, **settings})
    artifact = checkpoint(Registry.open(tmp_path / "home"), config, layout="baichuan")
    write(artifact, tmp_path / "out", plan_baichuan)
    again = import_model(Registry.open(tmp_path / "other"), tmp_path / "out")
    assert load_config(again.path) == config
    found = load_file(again.file("model.safetensors"))
    assert all(torch.equal(found[name], tensor) for name, tensor in drawn(config).items())


def test_a_tied_head_is_written_twice(tmp_path: Path) -> None:
    config = ModelConfig(**{**SMALL, "tied": True})
    plan = write(
        checkpoint(Registry.open(tmp_path / "home"), config), tmp_path / "out", plan_baichuan
    )
    assert "written twice" in plan.notes[0]
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    again = import_model(Registry.open(tmp_path / "other"), tmp_path / "out")
    assert load_config(again.path) == ModelConfig(**SMALL)


NO_PLACE = {
    "biases": ({"qkv_bias": True}, "--to qwen2"),
    "norms of queries": ({"qk_norm": True}, "--to qwen3"),
    "a sliding window": ({"sliding_window": 16}, "--to mistral"),
    "rope_base = 50000": ({"rope_base": 50000.0}, "--to llama"),
    "RoPE scaling": ({"rope_scaling": RopeScaling(kind="linear", factor=2.0)}, "--to llama"),
    "a classes head": ({"head": "classes", "num_classes": 3}, "--to safetensors"),
}


@pytest.mark.parametrize(("what", "case"), NO_PLACE.items(), ids=NO_PLACE)
def test_what_the_layout_has_no_place_for(
    what: str, case: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    settings, way_out = case
    artifact = checkpoint(Registry.open(tmp_path), ModelConfig(**{**SMALL, **settings}))
    with SourceModel.open(artifact) as source, pytest.raises(UsageError) as raised:
        plan_baichuan(source, None, 1 << 30)
    assert what in raised.value.what
    assert way_out in (raised.value.todo or "")


READERS = {
    "released 7B": ({"hidden_size": 4096, "vocab_size": 125_696}, True),
    "released 13B": (
        {"hidden_size": 5120, "num_heads": 40, "vocab_size": 125_696, "position": "alibi"}, True,
    ),
    "small RoPE": ({"norm_head": False}, False),
    "small ALiBi": ({"position": "alibi"}, False),
    "small ALiBi, plain head": ({"position": "alibi", "norm_head": False}, True),
    "released 7B, plain head": (
        {"hidden_size": 4096, "vocab_size": 125_696, "norm_head": False}, False,
    ),
    "grouped": ({"num_kv_heads": 2, "norm_head": False, "position": "alibi"}, False),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "vllm"), READERS.values(), ids=READERS)
def test_readers(settings: dict[str, Any], vllm: bool) -> None:
    found = {one.name: one for one in readers_of(ModelConfig(**{**SMALL, **settings}))}
    reads = {name for name, one in found.items() if one.reads}
    assert reads == {"transformers 5"} | ({"vLLM before 0.24"} if vllm else set())
    assert all(one.why for one in found.values() if not one.reads)


# -- the files beside the weights -----------------------------------------------------------


def test_a_chat_model_has_the_released_settings(exported: Exported) -> None:
    _, folder = exported("baichuan2-7b")
    found = json.loads((folder / "generation_config.json").read_text())
    for name, value in made_baichuan.GENERATION.items():
        assert name == "transformers_version" or found[name] == value
    read = transformers.GenerationConfig.from_pretrained(folder)
    assert (read.user_token_id, read.assistant_token_id) == (195, 196)


def test_config_has_the_released_keys(exported: Exported) -> None:
    for name, release in made_baichuan.RELEASES.items():
        found = json.loads((exported(name)[1] / "config.json").read_text())
        same = release.config.keys() - {"architectures", "auto_map", "transformers_version",
                                        "gradient_checkpointing"}  # fmt: skip
        assert {n: found.get(n) for n in same} == {n: release.config[n] for n in same}
        assert found["model_max_length"] == WINDOW
        assert ("max_position_embeddings" in found) is ("max_position_embeddings" in release.config)


def test_a_tokenizer_json_goes_as_it_came(tmp_path: Path) -> None:
    data = made_json_tokenizers.qwen_like()
    config = ModelConfig(**{**SMALL, "vocab_size": 1280})
    artifact = checkpoint(Registry.open(tmp_path / "home"), config, model=data, layout="chatml",
        generation=GenerationDefaults(temperature=0.5),
    )  # fmt: skip
    write(artifact, tmp_path / "out", plan_baichuan)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == data
    assert not (tmp_path / "out" / "tokenization_baichuan.py").exists()
    tokenizer = load_tokenizer(tmp_path / "out")
    with SourceModel.open(artifact) as source:
        messages = [{"role": "user", "content": "你好 hi"}]
        assert source.chat is not None
        assert tokenizer("你好 hi")["input_ids"] == source.tokenizer.encode("你好 hi")
        found = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert found == source.chat.prompt(messages)
    load(tmp_path / "out")
    again = import_model(Registry.open(tmp_path / "other"), tmp_path / "out")
    for name in ("tokenizer.json", "chat.json"):
        assert again.file(name).read_bytes() == artifact.file(name).read_bytes()
