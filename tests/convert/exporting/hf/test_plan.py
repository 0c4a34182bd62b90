"""Models of bc2's own kind in transformers: NormHead folded, W_pack split, rounded, tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from exported import our_greedy, our_logits, their_greedy, their_logits, theirs, write
from made_json_tokenizers import llama3_like, qwen_like
from safetensors.torch import load_file
from small_checkpoints import SMALL, checkpoint, drawn

from bc2.convert.exporting.hf.plan import plan_llama, plan_mistral
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.importing.import_model import import_model
from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling
from bc2.registry import Registry
from bc2.tokenizer.tokenizer import Tokenizer

MODELS: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "plain-head": {"norm_head": False},
    "grouped": {"num_kv_heads": 2, "head_dim": 32, "rope_base": 500000.0},
    "tied": {"tied": True},
    "tied-plain": {"tied": True, "norm_head": False},
    "scaled": {"rope_scaling": RopeScaling(kind="linear", factor=2.0)},
    "window": {"sliding_window": 16, "num_kv_heads": 1},
    "odd": {"hidden_size": 66, "head_dim": 32},
    "qk-norm": {"qk_norm": True},
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("quickstart", "tied", "window")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MODELS
    ],
)
def test_transformers_says_what_bc2_says(tmp_path: Path, name: str) -> None:
    config = ModelConfig(**{**SMALL, **MODELS[name]})
    artifact = checkpoint(Registry.open(tmp_path / "home"), config)
    write(artifact, tmp_path / "out")
    model = theirs(tmp_path / "out")
    ids = torch.randint(640, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = our_logits(artifact, ids)
    torch.testing.assert_close(their_logits(model, ids), expected, rtol=0, atol=1e-4)
    assert their_greedy(model, ids[:20], 64) == our_greedy(artifact, ids[:20], 64)
    again = import_model(Registry.open(tmp_path / "again"), tmp_path / "out")
    torch.testing.assert_close(our_logits(again, ids), expected, rtol=0, atol=1e-4)


def test_the_tensors(tmp_path: Path) -> None:
    """Each of the checkpoint's, bit for bit, but for the head's rows of unit length."""
    config = ModelConfig(**{**SMALL, "num_kv_heads": 2})
    state = drawn(config)
    write(checkpoint(Registry.open(tmp_path / "home"), config, state=state), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    head = state.pop("lm_head.weight").double()
    unit = (head / head.norm(dim=1, keepdim=True)).float()
    torch.testing.assert_close(found.pop("lm_head.weight"), unit, rtol=0, atol=1e-6)
    for name, tensor in state.items():
        if "W_pack" in name:
            parts = [found.pop(name.replace("W_pack", f"{part}_proj")) for part in "qkv"]
            assert [len(part) for part in parts] == [64, 32, 32]
            assert torch.equal(torch.cat(parts), tensor)
        else:
            assert torch.equal(found.pop(name), tensor), name
    assert found == {}


def test_a_tied_normhead_becomes_a_head_of_its_own(tmp_path: Path) -> None:
    config = ModelConfig(**{**SMALL, "tied": True})
    plan = write(checkpoint(Registry.open(tmp_path / "home"), config), tmp_path / "out")
    assert any("apart from the embedding" in note for note in plan.notes)
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found["lm_head.weight"].norm(dim=1), torch.ones(640))
    assert not torch.allclose(
        found["model.embed_tokens.weight"].norm(dim=1), torch.ones(640), atol=0.1
    )
    assert theirs(tmp_path / "out").config.tie_word_embeddings is False


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_rounding(tmp_path: Path, name: Any, dtype: torch.dtype) -> None:
    """The unit rows are computed in fp32 before they are rounded."""
    state = drawn(ModelConfig(**SMALL))
    artifact = checkpoint(Registry.open(tmp_path / "home"), ModelConfig(**SMALL), state=state)
    plan = write(artifact, tmp_path / "out", dtype=name)
    assert plan.dtype == name
    found = load_file(tmp_path / "out" / "model.safetensors")
    head = torch.nn.functional.normalize(state["lm_head.weight"].double(), dim=1).to(dtype)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found["lm_head.weight"], head, rtol=step, atol=1e-7)
    table = "model.embed_tokens.weight"
    assert torch.equal(found[table], state[table].to(dtype))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == dtype


def test_types_stay_as_they_are_stored(tmp_path: Path) -> None:
    config = ModelConfig(**SMALL)
    state = drawn(config, dtype=torch.bfloat16)
    plan = write(
        checkpoint(Registry.open(tmp_path / "home"), config, state=state), tmp_path / "out"
    )
    assert plan.dtype == "bf16"
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("tokenizer", [None, llama3_like])
def test_biases_need_qwens_tokenizer(tmp_path: Path, tokenizer: Any) -> None:
    """transformers reads every Qwen 2 with it, whatever is written."""
    config = ModelConfig(**{**SMALL, "vocab_size": 1280, "qkv_bias": True})
    made = checkpoint(
        Registry.open(tmp_path / "home"), config, model=tokenizer() if tokenizer else None
    )
    with pytest.raises(UsageError, match="Qwen's own tokenizer") as error:
        write(made, tmp_path / "out")
    assert "--to gguf" in str(error.value.todo)
    good = checkpoint(Registry.open(tmp_path / "home"), config, model=qwen_like())
    assert write(good, tmp_path / "good").format == "qwen2"


def test_readers_say_what_vllm_cannot(tmp_path: Path) -> None:
    def vllm(**other: Any) -> tuple[bool, str]:
        config = ModelConfig(**{**SMALL, "vocab_size": 1280, **other})
        made = checkpoint(Registry.open(tmp_path / "home"), config, model=qwen_like())
        with SourceModel.open(made) as source:
            readers = plan_llama(source, None, 1 << 30).readers
        return next((one.reads, one.why) for one in readers if one.name == "vLLM")

    assert vllm(head_dim=32) == (True, "")
    assert "not on a CPU" in vllm()[1]
    assert vllm(qkv_bias=True, head_dim=32)[0] is False


def test_mistral_is_asked_for_by_name(tmp_path: Path) -> None:
    artifact = checkpoint(Registry.open(tmp_path / "home"), ModelConfig(**SMALL))
    assert write(artifact, tmp_path / "out", plan_mistral).format == "mistral"
    assert type(theirs(tmp_path / "out")).__name__ == "MistralForCausalLM"


def test_our_tokenizer_comes_back_exact(tmp_path: Path) -> None:
    """tokenizer.json of a model that bc2 trained keeps every text, also in bc2."""
    artifact = checkpoint(Registry.open(tmp_path / "home"), ModelConfig(**SMALL))
    write(artifact, tmp_path / "out", plan_llama)
    again = import_model(Registry.open(tmp_path / "again"), tmp_path / "out")
    first, second = Tokenizer.load(artifact.path), Tokenizer.load(again.path)
    assert second.file_name == "tokenizer.json"
    assert second.exact
    assert first.special_ids == second.special_ids
    for text in ("a\u2581b  c\ud800\n", "天\x00 <s> </s><reserved_106>", "\udfff", " "):
        assert second.encode(text) == first.encode(text)
        assert second.decode(second.encode(text)) == text
