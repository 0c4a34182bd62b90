"""Tensors that are read back: right ones pass, and each kind of wrong one is named."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import made_export
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from made_export import Held

from bc2.convert.exporting.target import Dtype, ExportPlan, TargetTensor
from bc2.convert.proof.tensor_check import check_tensors, interleaved, narrow, wide
from bc2.convert.proof.written_tensors import written_tensors
from bc2.errors import RunFailed

HeldModel = Callable[[str], Held]


def problems(held: Held, plan: ExportPlan, folder: Path) -> list[str]:
    facts, found = check_tensors(folder, held.source, plan, lambda count: None)
    assert facts["tensors"] == len(plan.tensors)
    return found


def changed(plan: ExportPlan, name: str, change: Callable[[TargetTensor], TargetTensor]) -> Any:
    """A plan of which one tensor is another one."""
    tensors = tuple(change(one) if one.name == name else one for one in plan.tensors)
    return replace(plan, tensors=tensors)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["llama3", "llama-tied", "qwen2", "qwen3", "baichuan2-7b"])
def test_right_files(held: HeldModel, tmp_path: Path, name: str, dtype: Dtype) -> None:
    one = held(name)
    plan = one.plan(dtype)
    folder = made_export.write(plan, one.source, tmp_path / "out")
    assert problems(one, plan, folder) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_flipped_bit(held: HeldModel, tmp_path: Path, dtype: Dtype) -> None:
    one = held("llama3")
    plan = one.plan(dtype)
    folder = made_export.write(plan, one.source, tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    found = written_tensors(folder, ["model.safetensors"])[0][name]
    row, column = 5, 3
    at = found.offset + row * found.row_bytes + column * (found.row_bytes // found.shape[1])
    data = bytearray(found.path.read_bytes())
    data[at] ^= 1
    found.path.write_bytes(data)
    (said,) = problems(one, plan, folder)
    assert said == f"{name} is not what the checkpoint has, from row {row}, column {column} on"


def test_swapped_queries_and_keys(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama-tied")  # with as many heads of both, nothing else would show it
    right = one.plan()
    q, k = (f"model.layers.0.self_attn.{letter}_proj.weight" for letter in "qk")
    by_name = {target.name: target for target in right.tensors}
    plan = changed(right, q, lambda target: replace(by_name[k], name=q))
    plan = changed(plan, k, lambda target: replace(by_name[q], name=k))
    folder = made_export.write(plan, one.source, tmp_path / "out")
    assert [said.split()[0] for said in problems(one, plan, folder)] == [k, q]


def test_a_head_that_is_not_folded(held: HeldModel, tmp_path: Path) -> None:
    one = held("baichuan2-7b")
    plan = changed(one.plan(), "lm_head.weight", lambda target: replace(target, change=None))
    folder = made_export.write(plan, one.source, tmp_path / "out")
    (said,) = problems(one, plan, folder)
    assert said.startswith("lm_head.weight is not what the checkpoint has")


def test_a_head_that_is_rounded_twice(held: HeldModel, tmp_path: Path) -> None:
    """To 8 bits before, and then to fp16: wrong by less than one bit of bf16."""
    one = held("baichuan2-7b")
    plan = one.plan("fp16")
    (head,) = (target for target in plan.tensors if target.name == "lm_head.weight")
    assert head.change is not None
    before = head.change.apply
    twice = replace(head.change, apply=lambda rows: before(rows).bfloat16().float())
    plan = changed(plan, head.name, lambda target: replace(target, change=twice))
    folder = made_export.write(plan, one.source, tmp_path / "out")
    assert [said.split()[0] for said in problems(one, plan, folder)] == ["lm_head.weight"]


def test_a_tensor_that_is_not_there(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    right, name = one.plan(), "model.layers.0.self_attn.v_proj.weight"
    less = replace(right, tensors=tuple(t for t in right.tensors if t.name != name))
    folder = made_export.write(less, one.source, tmp_path / "out")
    found = check_tensors(folder, one.source, right, lambda count: None)[1]
    assert found[0] == f"{name} is missing"
    found = check_tensors(folder, one.source, less, lambda count: None)[1]
    assert found == ["rows of model.layers.0.self_attn.W_pack.weight are in no file"]


def test_a_file_that_ends_early(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match=r"model.safetensors ends within a tensor"):
        problems(one, plan, folder)
    path.write_bytes(struct.pack("<Q", 10) + b"{no JSON} ")
    with pytest.raises(RunFailed, match="no readable header"):
        problems(one, plan, folder)


def test_rounding_is_torchs() -> None:
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(3))
    numbers = bits.to(torch.int32).view(torch.float32)
    numbers = numbers[numbers.isfinite() & (numbers.abs() < 6e4)]
    halves = torch.tensor([1.0, -1.0]) * (1 + 2.0**-8)  # as far from one bf16 as from the next
    numbers = torch.cat([numbers, halves, torch.tensor([0.0, -0.0, 2.0**-24, 2.0**-140])])
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        expected = numbers.to(dtype).view(torch.uint16)
        assert np.array_equal(narrow(numbers.numpy(), name), expected.numpy())
        back = wide(expected.numpy().view(np.uint8), name)
        assert np.array_equal(back, numbers.to(dtype).float().numpy())


def test_files_of_ggufs_own_package(tmp_path: Path) -> None:
    """The package writes; what is read here is what it was given."""
    drawn = np.random.default_rng(5).normal(size=(8, 64)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_array("numbers", [1, 2])
    writer.add_tensor("one", drawn)
    writer.add_tensor("half", drawn.astype(np.float16))
    blocks = quantize(drawn, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("few", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, architecture = written_tensors(tmp_path, ["m.gguf"])
    assert architecture == "llama"
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        "one": ("F32", (8, 64)), "half": ("F16", (8, 64)), "few": ("Q8_0", (8, 64)),
    }  # fmt: skip
    assert np.array_equal(wide(found["one"].rows(2, 3), "F32"), drawn[2:5].reshape(-1))
    assert np.array_equal(found["few"].rows(0, 8), blocks.reshape(-1))


def test_interleaved_rows() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)  # two heads of six channels
    assert interleaved(rows, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
