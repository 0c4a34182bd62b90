"""Which device, and what its maker says of it."""

from __future__ import annotations

import pytest
import torch

from bc2.errors import UsageError
from bc2.train import device as module
from bc2.train.device import (
    datasheet_flops,
    pick_compile,
    pick_device,
    pick_inference_precision,
)
from bc2.train.precision import Precision
from bc2.train.pretrain_config import PretrainConfig

CPU = torch.device("cpu")


def test_a_cpu_has_no_datasheet() -> None:
    assert datasheet_flops(CPU, "bf16") is None


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", (989e12, "datasheet of H100")),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("Something New", "bf16", None),
    ],
)
def test_a_known_gpu_has_one(
    name: str, precision: Precision, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert datasheet_flops(torch.device("cuda"), precision) == expected


@pytest.mark.parametrize("wanted", ["tpu", "cpu:1", "cuda:99", "meta"])
def test_a_device_that_is_not_here(wanted: str) -> None:
    with pytest.raises(UsageError):
        pick_device(wanted)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("wanted", "expected"), [("auto", "fp32"), ("fp32", "fp32"), ("bf16", "bf16")]
)
def test_answers_are_exact_on_a_cpu_unless_asked_otherwise(
    wanted: str, expected: Precision, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    assert pick_inference_precision(wanted, CPU) == expected


@pytest.mark.parametrize(
    ("wanted", "native", "expected"),
    [("auto", True, "bf16"), ("auto", False, "fp32"), ("fp32", True, "fp32")],
)
def test_answers_on_a_gpu_have_the_type_that_it_is_fast_in(
    wanted: str, native: bool, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert pick_inference_precision(wanted, torch.device("cuda")) == expected


@pytest.mark.parametrize("wanted", ["fp16", "", "BF16"])
def test_a_precision_that_there_is_not(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"no such precision.*auto, fp32 or bf16"):
        pick_inference_precision(wanted, CPU)


@pytest.mark.parametrize(
    ("wanted", "device", "triton", "compiles"),
    [
        ("auto", "cpu", True, False),
        ("auto", "cuda:0", True, True),
        ("auto", "cuda:0", False, False),
        (True, "cpu", False, True),
        (False, "cuda:0", True, False),
    ],
)
def test_compiling_is_the_default_on_a_gpu_with_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool | str,
    device: str,
    triton: bool,
    compiles: bool,
) -> None:
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: object() if triton else None
    )
    assert pick_compile(wanted, torch.device(device)) is compiles


def test_compile_auto_has_the_key_of_false() -> None:
    config = PretrainConfig(length="1 step", batch_tokens=8, micro_batch=1, sequence_length=8)
    assert config.compile == "auto"
    keys = [config.model_copy(update={"compile": value}).keyed() for value in ("auto", False, True)]
    assert keys[0] == keys[1] != keys[2]
