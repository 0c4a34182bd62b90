"""What DeepSpeed holds, as its formulas say it: against the tensors of its real optimizers.

On a CPU everything is on one device, but DeepSpeed makes the same tensors under the same names as
on a GPU, and its source says of each where it is.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warmed

from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.deepspeed_settings import BUCKET
from bc2.train.memory.shape import TrainingShape
from bc2.train.memory.states import States, zero_states

DRIVER = Path(__file__).with_name("zero_driver.py")
LENGTH = 32
MODEL = {
    "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_layers": 2,
    "num_heads": 4, "context_length": LENGTH,
}  # fmt: skip


#: All but the embedding and the first layer.
UPPER = [
    name
    for name in expected_shapes(ModelConfig(**MODEL))
    if not name.startswith(("model.embed_tokens.", "model.layers.0."))
]


def a_case(
    zero: int, offload: bool, precision: str, micro_batches: int, trained: list[str] | None = None
) -> dict[str, Any]:
    return {
        "trained": trained,
        "zero": zero,
        "offload": offload,
        "precision": precision,
        "micro_batches": micro_batches,
    }


OFFLOADED = [
    a_case(zero, True, precision, micro_batches)
    for zero in (1, 2)
    for precision in ("bf16", "fp32")
    for micro_batches in (1, 2)
]
OFFLOADED += [a_case(zero, True, "bf16", 2, UPPER) for zero in (1, 2)]
#: ZeRO 1 in bf16 is another optimizer of DeepSpeed's there, `BF16_Optimizer`.
ZERO_2 = [a_case(2, False, "bf16", micro_batches) for micro_batches in (1, 2)]
ZERO_2 += [a_case(2, False, "bf16", 2, UPPER)]
ZERO_3 = [a_case(3, offload, "bf16", 2) for offload in (False, True)]
ZERO_3 += [a_case(3, True, "bf16", 2, UPPER)]
CASES = [*OFFLOADED, *ZERO_2, *ZERO_3]


def name_of(case: dict[str, Any]) -> str:
    where = "offload" if case["offload"] else "device"
    part = "-upper" if case["trained"] else ""
    return f"zero{case['zero']}-{where}-{case['precision']}-{case['micro_batches']}{part}"


def states_of(case: dict[str, Any], device: str = "cuda", world: int = 2, **model: Any) -> States:
    return zero_states(
        TrainingShape(
            ModelConfig(**{**MODEL, **model}), 1, LENGTH, case["precision"], 0, device=device,
            accumulated=case["micro_batches"] > 1, world=world,
            parallel=ParallelConfig(zero=case["zero"], offload_optimizer=case["offload"]),
            trained=frozenset(case["trained"]) if case["trained"] else None,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def held() -> dict[str, dict[str, int]]:
    """Bytes that rank 0 of two holds, by case."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    cases = json.dumps([{**case, "model": MODEL} for case in CASES])
    ranks = [
        warmed.Popen(
            [sys.executable, str(DRIVER), cases],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if rank else None, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        out = ranks[0].communicate(timeout=240)[0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == len(CASES), out
    return {name_of(case): json.loads(line) for case, line in zip(CASES, lines, strict=True)}


def about(size: int) -> Any:
    """Partitions are padded and cut between ranks a little off the middle."""
    return pytest.approx(size, rel=0.02, abs=2000)


@pytest.mark.parametrize("case", OFFLOADED, ids=name_of)
def test_offloaded_states_leave_these_gradients_on_the_device(
    case: dict[str, Any], held: dict[str, dict[str, int]]
) -> None:
    """4 bytes for each parameter of this rank's part in bf16, with ZeRO 1 for all at first."""
    expected, found = states_of(case), held[name_of(case)]
    assert found["earlier"] == about(expected.earlier)
    assert found["normed"] == about(expected.normed["gradients"])
    assert expected.updated["gradients"] == expected.normed["gradients"]
    assert found["after"] == 0
    assert found["temporary"] == about(expected.lasting["buffers"])
    # What stays in the buckets: never with ZeRO 2, and as much as two buckets hold with ZeRO 1.
    left = expected.normed["buffers"]
    assert found["left"] <= left
    assert (found["left"] > 0) == (left > 0)


@pytest.mark.parametrize("case", OFFLOADED, ids=name_of)
def test_the_host_holds_what_was_offloaded(
    case: dict[str, Any], held: dict[str, dict[str, int]]
) -> None:
    found = held[name_of(case)]["host"]
    # What a matrix between two ranks has, both keep.
    whole = 4 * MODEL["vocab_size"] * MODEL["hidden_size"]
    assert states_of(case).host == pytest.approx(found, rel=0.02, abs=whole)


@pytest.mark.parametrize("case", ZERO_2, ids=name_of)
def test_gradients_of_zero_2_without_offload(
    case: dict[str, Any], held: dict[str, dict[str, int]]
) -> None:
    expected, found = states_of(case), held[name_of(case)]
    assert found["earlier"] == about(expected.earlier)
    assert found["normed"] == about(expected.normed["gradients"])
    assert expected.updated["gradients"] == expected.normed["gradients"]
    assert found["after"] == 0


@pytest.mark.parametrize("case", ZERO_3, ids=name_of)
def test_offloaded_gradients_of_zero_3_are_on_the_host_twice(
    case: dict[str, Any], held: dict[str, dict[str, int]]
) -> None:
    expected = states_of(case, device="cpu").lasting["gradients"]
    assert held[name_of(case)]["gradients"] == about(expected)
    part = states_of(case).gradients
    assert expected == (2 if case["offload"] else 1) * part


def test_what_the_first_bucket_brings_is_held_with_most_activations() -> None:
    """The buffer of summed gradients is made whole with the first one that is reduced."""
    large = {"vocab_size": 65_536, "hidden_size": 4096, "intermediate_size": 11_008}
    states = states_of(a_case(2, True, "bf16", 1), **large)
    assert states.gradients // 4 * 2 > BUCKET
    assert states.passing["gradients"] == states.gradients
    assert states.earlier == 0
    assert states_of(a_case(2, True, "bf16", 2), **large).passing["gradients"] == 0
    first = states_of(a_case(1, True, "bf16", 2), **large)
    assert first.passing["gradients"] == states.gradients
    assert first.earlier == about(2 * states.gradients)
