"""Which device, and what its maker says of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.cuda._utils import _get_device_index

from bc2.errors import UsageError
from bc2.train import device as module
from bc2.train.device import (
    check_gpus_for,
    datasheet_flops,
    pick_compile,
    pick_device,
    pick_inference_precision,
    rank_device,
    take_device,
)
from bc2.train.precision import Precision
from bc2.train.pretrain.pretrain_config import PretrainConfig

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Pretend that so many GPUs are visible; the indices that are made current."""

    def see(count: int) -> list[int]:
        made_current: list[int] = []

        def set_device(device: torch.device) -> None:
            # torch refuses one without an index, too.
            made_current.append(_get_device_index(device))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", set_device)
        return made_current

    return see


def be_rank(
    monkeypatch: pytest.MonkeyPatch, number: int, world: int = 8, local_world: int | None = None
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("LOCAL_RANK", str(number))
    if local_world is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_world))


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_gpu_that_is_picked_has_an_index_and_nothing_is_taken_of_it(
    wanted: str, expected: str, gpus: Callable[[int], list[int]]
) -> None:
    made_current = gpus(2)
    assert str(pick_device(wanted)) == expected
    assert made_current == []
    assert str(take_device(wanted)) == expected
    assert made_current == ([] if expected == "cpu" else [int(expected[-1])])


def test_auto_is_the_cpu_where_there_is_no_gpu(gpus: Callable[[int], list[int]]) -> None:
    assert gpus(0) == []
    assert str(pick_device("auto")) == "cpu"
    with pytest.raises(UsageError, match="cuda is not here: 0 CUDA devices"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("number", "visible", "expected"),
    [
        (3, 8, 3),  # torchrun, deepspeed, bc2 --nproc: every rank sees all GPUs
        (0, 1, 0),  # srun --gpus-per-task=1: each sees its own alone, as number 0
        (3, 1, 0),
        (1, 2, 1),  # srun --gpus-per-task=2: the second of its own two
    ],
)
def test_each_rank_has_a_gpu_however_many_it_sees(
    number: int, visible: int, expected: int, gpus: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made_current = gpus(visible)
    be_rank(monkeypatch, number)
    for wanted in ("auto", "cuda"):
        assert take_device(wanted) == torch.device("cuda", expected)
    assert made_current == [expected] * 2


def test_a_rank_that_sees_several_gpus_and_too_few(
    gpus: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(2)
    be_rank(monkeypatch, 2)
    with pytest.raises(UsageError, match=r"number 2 on its machine.* sees 2 CUDA devices"):
        rank_device("auto")
    # What was named is taken.
    assert str(rank_device("cuda:1")) == "cuda:1"


@pytest.mark.parametrize(
    ("wanted", "visible", "nproc", "said"),
    [
        ("auto", 4, 4, None),
        ("auto", 0, 4, None),
        ("cpu", 1, 4, None),
        ("cuda", 1, 2, "--nproc 2 needs as many GPUs, and 1 can be seen"),
        ("cuda:1", 4, 2, "--nproc 2 needs as many GPUs, and device = cuda:1 is one"),
    ],
)
def test_ranks_are_started_only_if_there_is_a_gpu_for_each(
    wanted: str, visible: int, nproc: int, said: str | None, gpus: Callable[[int], list[int]]
) -> None:
    made_current = gpus(visible)
    if said is None:
        check_gpus_for(wanted, nproc)
    else:
        with pytest.raises(UsageError, match=said):
            check_gpus_for(wanted, nproc)
    assert made_current == []


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
    # Of two GPUs the second is asked for, and the first, the current one, is of another kind.
    kinds = {0: (7, 5) if native else (9, 0), 1: (9, 0) if native else (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kinds[device.index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert pick_inference_precision(wanted, torch.device("cuda", 1)) == expected


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
    monkeypatch.setattr(module, "triton_compiler", lambda: "gcc")
    monkeypatch.setattr(module, "has_python_headers", lambda: True)
    assert pick_compile(wanted, torch.device(device)) is compiles


@pytest.mark.parametrize(
    ("compiler", "headers", "compiles"),
    [("gcc", True, True), (None, True, False), ("gcc", False, False)],
)
def test_without_what_triton_builds_launchers_with_nothing_is_compiled(
    monkeypatch: pytest.MonkeyPatch, compiler: str | None, headers: bool, compiles: bool
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(module.shutil, "which", lambda name: compiler if name == "gcc" else None)
    monkeypatch.setattr(module, "has_python_headers", lambda: headers)
    assert pick_compile("auto", torch.device("cuda", 0)) is compiles
    assert pick_compile(True, torch.device("cuda", 0)) is True


def test_compile_auto_has_the_key_of_false() -> None:
    config = PretrainConfig(length="1 step", batch_tokens=8, micro_batch=1, sequence_length=8)
    assert config.compile == "auto"
    keys = [config.model_copy(update={"compile": value}).keyed() for value in ("auto", False, True)]
    assert keys[0] == keys[1] != keys[2]
