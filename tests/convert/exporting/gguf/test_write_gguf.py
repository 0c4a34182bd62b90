"""Files as the gguf package reads them back, against programs that change rows one by one."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import write
from gguf import GGUFReader
from gguf.quants import dequantize
from small_checkpoints import checkpoint, drawn, shape
from torch import Tensor

from bc2.convert.exporting import target_rows
from bc2.convert.exporting.gguf.plan import FILE, plan_gguf
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype
from bc2.errors import DataError
from bc2.model.model_config import ModelConfig
from bc2.registry import Artifact, Registry

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip

WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4}

CASES: dict[str, tuple[dict[str, Any], Dtype]] = {
    "rope": ({**WIDE, "num_kv_heads": 2}, "fp32"),
    "rope in bf16": (WIDE, "bf16"),
    "rope in fp16": (WIDE, "fp16"),
    "rope in q8_0": (WIDE, "q8_0"),
    "rows of no whole blocks": ({"hidden_size": 48, "intermediate_size": 64}, "q8_0"),
    "alibi": ({**WIDE, "position": "alibi", "num_heads": 5, "head_dim": 8}, "fp32"),
    "biases": ({**WIDE, "qkv_bias": True}, "fp32"),
    "biases, interleaved": ({**WIDE, "qkv_bias": True, "head_dim": 20}, "fp16"),
    "norms": ({**WIDE, "qk_norm": True, "head_dim": 24}, "fp32"),
    "tied": ({**WIDE, "tied": True, "norm_head": False}, "fp32"),
    "tied NormHead": ({**WIDE, "tied": True}, "fp32"),
    "plain head": ({**WIDE, "norm_head": False}, "q8_0"),
}  # fmt: skip


def made(folder: Path, settings: dict[str, Any], **more: Any) -> Artifact:
    return checkpoint(
        Registry.open(folder / "home"), shape(**settings), **{"layout": "baichuan", **more}
    )


def expected(name: str, config: ModelConfig, state: dict[str, Tensor]) -> Tensor:
    """A tensor by its name in the file, in fp32."""
    *layer, short, what = name.split(".")
    there = f"model.layers.{layer[1]}." if layer else ""
    if short in ("attn_q", "attn_k", "attn_v"):
        return head_rows(short[-1], config, state[f"{there}self_attn.W_pack.{what}"])
    if name == "output.weight":
        head = state["model.embed_tokens.weight" if config.tied else "lm_head.weight"]
        return head / head.norm(dim=1, keepdim=True) if config.norm_head else head
    return state[f"{there}{NAMES[short]}.{what}"]


def head_rows(part: str, config: ModelConfig, packed: Tensor) -> Tensor:
    """Rows of a part; where neighbouring channels rotate, channel k + K/2 comes after k."""
    size, heads = config.head_size, config.num_heads
    counts = {"q": heads, "k": config.kv_heads, "v": config.kv_heads}
    first = size * sum(counts[one] for one in "qkv"[: "qkv".index(part)])
    plain = config.position == "alibi" or config.qk_norm
    plain |= config.qkv_bias and size * heads == config.hidden_size
    order = list(range(size))
    if part != "v" and not plain:
        order = [k // 2 + k % 2 * (size // 2) for k in range(size)]
    return torch.stack(
        [packed[first + head * size + k] for head in range(counts[part]) for k in order]
    )


def read(path: Path) -> dict[str, tuple[str, Tensor]]:
    """By name the type of each tensor, and its numbers in fp32."""
    return {
        one.name: (
            one.tensor_type.name,
            torch.from_numpy(np.array(dequantize(one.data, one.tensor_type), np.float32)),
        )
        for one in GGUFReader(path).tensors
    }


def rounded(tensor: Tensor, kind: str) -> Tensor:
    if kind == "Q8_0":
        return torch.stack([in_blocks(row) for row in tensor])
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return tensor.to(types[kind]).float()


def in_blocks(row: Tensor) -> Tensor:
    """Of each 32 numbers the integers up to 127, halves away from zero, and a scale in fp16."""
    made = []
    for block in row.split(32):
        scale = block.abs().max() / 127
        steps = block * (1 / scale)
        whole = (steps.abs() + 0.5).floor() * steps.sign()
        made.append(whole * scale.half().float())
    return torch.cat(made)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_rows, "_AT_ONCE", 4096)  # several pieces of each matrix
    settings, dtype = CASES[name]
    config, state = shape(**settings), drawn(shape(**settings))
    plan = write(made(tmp_path, settings), tmp_path / "out", plan_gguf, dtype)
    there = read(tmp_path / "out" / FILE)
    assert there.keys() == {one.name for one in plan.tensors}
    tied = config.tied and not config.norm_head
    assert ("output.weight" in there) is not tied
    assert sum(one.numel() for _, one in there.values()) == config.num_params() + (
        config.vocab_size * config.hidden_size if config.tied and config.norm_head else 0
    )
    for tensor, (kind, numbers) in there.items():
        right = expected(tensor, config, state)
        wanted = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}[dtype]
        if right.dim() == 1:
            wanted = "F32"
        elif dtype == "q8_0" and right.shape[1] % 32:
            wanted = "F16"
        assert kind == wanted, tensor
        if tensor == "output.weight" and config.norm_head:
            # Half a step of a block whose largest number is 1, and a step of bf16.
            near, relative = (1 / 254, 0.0) if kind == "Q8_0" else (1e-7, 2**-8)
            assert torch.allclose(numbers, right, rtol=relative, atol=near)
        else:
            assert torch.equal(numbers, rounded(right, kind)), tensor


def test_a_sha256_of_the_whole_file_and_every_byte_seen(tmp_path: Path) -> None:
    with SourceModel.open(made(tmp_path, WIDE)) as source:
        plan = plan_gguf(source, None, 1)
        seen: list[int] = []
        digests = plan.write(tmp_path, source, plan, seen.append)
    data = (tmp_path / FILE).read_bytes()
    assert digests == {FILE: hashlib.sha256(data).hexdigest()}
    assert sum(seen) == plan.sizes[FILE] == len(data)


def test_a_plan_of_other_types_has_a_header_of_its_own(tmp_path: Path) -> None:
    """A proof writes the same weights in fp32."""
    with SourceModel.open(made(tmp_path, WIDE)) as source:
        plan = plan_gguf(source, "fp16", 1)
        tensors = tuple(dataclasses.replace(one, dtype="F32") for one in plan.tensors)
        wide = dataclasses.replace(plan, dtype="fp32", tensors=tensors)
        wide.write(tmp_path, source, wide, lambda count: None)
    assert {kind for kind, _ in read(tmp_path / FILE).values()} == {"F32"}
    assert GGUFReader(tmp_path / FILE).fields["general.file_type"].contents() == 0


@pytest.mark.parametrize(
    ("number", "what"),
    [(float("nan"), "holds NaN"), (1e8, r"holds 1e\+08, which is too large for Q8_0")],
)
def test_numbers_that_do_not_fit_are_refused(number: float, what: str, tmp_path: Path) -> None:
    state = drawn(shape(**WIDE))
    state["model.layers.1.mlp.up_proj.weight"][5, 3] = number
    with SourceModel.open(made(tmp_path, WIDE, state=state)) as source:
        plan = plan_gguf(source, "q8_0", 1)
        with pytest.raises(DataError, match=rf"up_proj\.weight {what}"):
            plan.write(tmp_path, source, plan, lambda count: None)


def test_rows_that_stay_fp16_are_said(tmp_path: Path) -> None:
    with SourceModel.open(made(tmp_path, {"hidden_size": 48, "intermediate_size": 64})) as source:
        plan = plan_gguf(source, "q8_0", 1)
    (note,) = (note for note in plan.notes if "fp16" in note)
    assert "ffn_up" in note
    assert "ffn_down" not in note  # of 64 columns
