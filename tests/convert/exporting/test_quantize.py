"""Quantised exports: planned without bitsandbytes, written by it, and read back without it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from exported import our_logits, their_logits, write
from remote_code import load
from safetensors.torch import load_file
from small_checkpoints import SMALL, checkpoint

from bc2.convert.exporting.baichuan import plan_baichuan
from bc2.convert.exporting.hf.plan import plan_llama
from bc2.convert.exporting.quantize import Quantization, quantized
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan
from bc2.convert.proof.our_model import OurModel, Rounding
from bc2.convert.proof.prove import prove
from bc2.errors import RunFailed, UsageError
from bc2.model.model_config import ModelConfig
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.usefixtures("modules")

#: What bitsandbytes' 4-bit kernels for CPUs take: multiples of 32 × 64.
SIZES = {**SMALL, "intermediate_size": 128}
CONFIG = ModelConfig(**{**SIZES, "position": "alibi"})

KINDS: tuple[Quantization, ...] = ("int8", "nf4")

_SKIPPED = "bitsandbytes is not installed: pip install 'bc2[quantize]'"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if bitsandbytes were installed, where only plans are made."""
    monkeypatch.setattr("bc2.convert.exporting.quantize.find_spec", lambda name: True)


def as_kind(
    kind: Quantization, plan: Callable[..., ExportPlan] = plan_baichuan
) -> Callable[..., ExportPlan]:
    def planned(source: SourceModel, dtype: Dtype | None, limit: int) -> ExportPlan:
        return quantized(plan(source, dtype, limit), source, kind)

    return planned


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return checkpoint(Registry.open(tmp_path_factory.mktemp("home")), CONFIG, layout="baichuan")


def test_without_bitsandbytes_it_is_named(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bc2.convert.exporting.quantize.find_spec", lambda name: None)
    with SourceModel.open(artifact) as source, pytest.raises(UsageError, match="bitsandbytes") as e:
        as_kind("nf4")(source, None, 1 << 30)
    assert e.value.todo == 'pip install "bc2[quantize]"'


def test_matrices_that_no_kernel_takes(tmp_path: Path, there: None) -> None:
    odd = checkpoint(Registry.open(tmp_path), ModelConfig(**SMALL))
    with SourceModel.open(odd) as source:
        as_kind("int8")(source, None, 1 << 30)
        with pytest.raises(UsageError, match=r"down_proj\.weight of 64 × 96") as raised:
            as_kind("nf4")(source, None, 1 << 30)
    assert raised.value.todo == "ask for int8"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", [plan_baichuan, plan_llama], ids=["baichuan", "llama"])
def test_only_linear_layers_are_quantised(
    kind: Quantization, family: Callable[..., ExportPlan], tmp_path: Path, there: None
) -> None:
    rotates = checkpoint(Registry.open(tmp_path), ModelConfig(**SIZES))
    with SourceModel.open(rotates) as source:
        plain = family(source, "bf16", 1 << 30)
        plan = as_kind(kind, family)(source, "bf16", 1 << 30)
    assert plan.before == plain
    few = {one.name for one in plan.tensors if one.dtype in ("I8", "U8")}
    layers = {one.name for one in plain.tensors if "_proj" in one.name or "W_pack" in one.name}
    weights = {name for name in few if name.endswith(".weight")}
    assert weights == layers
    kept = {one for one in plain.tensors if one.name not in layers}
    assert kept == {one for one in plan.tensors if one in plain.tensors}
    assert any(one.name == "lm_head.weight" for one in kept)
    small = sum(plan.sizes.values())
    assert small < sum(plain.sizes.values())
    settings = json.loads(plan.texts["config.json"])["quantization_config"]
    assert settings["quant_method"] == "bitsandbytes"
    read = transformers.BitsAndBytesConfig(
        **{name: value for name, value in settings.items() if name != "quant_method"}
    )
    assert read.quantization_method() == {"int8": "llm_int8", "nf4": "nf4"}[kind]
    assert f"{len(layers)} linear layers are written as {kind}" in plan.notes[-1]
    reads = {one.name: one.reads for one in plan.readers}
    assert [name.split()[0] for name, does in reads.items() if does] == ["transformers"]


# -- written by bitsandbytes ----------------------------------------------------------------


@pytest.fixture
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason=_SKIPPED)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_files_are_those_of_transformers(
    artifact: Artifact, kind: Quantization, dtype: Dtype, tmp_path: Path, bitsandbytes: Any
) -> None:
    write(artifact, tmp_path / "plain", plan_baichuan, dtype)
    write(artifact, tmp_path / "ours", as_kind(kind), dtype)
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    del settings["quant_method"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", trust_remote_code=True,
        quantization_config=transformers.BitsAndBytesConfig(**settings),
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "theirs")
    found, expected = (
        load_file(tmp_path / one / "model.safetensors") for one in ("ours", "theirs")
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "quant_state" in name:  # ours has spaces after it
            same = [json.loads(bytes(one.tolist())) for one in (found[name], tensor)]
            assert same[0] == same[1]
        else:
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    model = load(tmp_path / "ours", dtype="auto")
    ids = list(range(200, 260))
    assert torch.equal(their_logits(model, ids), their_logits(theirs, ids))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_they_say_nearly_the_same(
    artifact: Artifact, kind: Quantization, tmp_path: Path, bitsandbytes: Any
) -> None:
    plan = write(artifact, tmp_path / "out", as_kind(kind), "bf16")
    ids = torch.randint(640, (200,), generator=torch.Generator().manual_seed(1)).tolist()

    def perplexity(log_probs: torch.Tensor) -> float:
        said = log_probs[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        return math.exp(-said.mean().item())

    with SourceModel.open(artifact) as source:
        ours = OurModel(Rounding.of(source, plan, tmp_path / "out"))
    here = perplexity(torch.from_numpy(np.array(ours.log_probs(ids))))
    logits = their_logits(load(tmp_path / "out"), ids)
    assert perplexity(logits.float().log_softmax(-1)) == pytest.approx(here, rel=0.01)
    plain = perplexity(our_logits(artifact, ids).log_softmax(-1))
    assert here == pytest.approx(plain, rel=0.2)
    assert here != plain


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_sees_each_wrong_part(
    artifact: Artifact, kind: Quantization, tmp_path: Path, bitsandbytes: Any
) -> None:
    plan = write(artifact, tmp_path / "out", as_kind(kind), "bf16")
    path = tmp_path / "out" / "model.safetensors"
    whole = path.read_bytes()
    layer = "model.layers.1.mlp.up_proj."
    with SourceModel.open(artifact) as source:
        facts = prove(path.parent, source, plan, level="tensors", data=None)
        assert facts["tensors"]["tensors"] == len(plan.tensors)
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
        begin = 8 + int.from_bytes(whole[:8], "little")
        for name, entry in header.items():
            if not name.startswith(layer) or "nested_quant_map" in name or "quant_state" in name:
                continue
            at = begin + entry["data_offsets"][1] - 1
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            with pytest.raises(RunFailed, match="up_proj"):
                prove(path.parent, source, plan, level="tensors", data=None)
        path.write_bytes(whole)
        other = replace(plan, dtype="fp32")
        with pytest.raises(RunFailed):
            prove(path.parent, source, other, level="tensors", data=None)
