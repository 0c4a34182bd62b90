"""What the DeepSpeed engine does on a GPU alone, with fakes; `tests/parallel` runs it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from bc2.parallel.mesh import Group, Mesh
from bc2.parallel.sharding import TensorShard
from bc2.train.engines import deepspeed
from bc2.train.engines.deepspeed import DeepSpeedEngine, may_pin
from bc2.train.engines.deepspeed_settings import PINNED_BYTES
from bc2.train.speed.clock import Clock


def engine(gradient: Any, copies: bool) -> DeepSpeedEngine:
    made = DeepSpeedEngine.__new__(DeepSpeedEngine)
    made.clock, made.mesh = Clock(), Mesh()
    made.parameters = {"a.norm.weight": nn.Parameter(torch.zeros(3))}
    made.parts = {"a.norm.weight": TensorShard((3,))}
    made._copies_gradients = copies
    made._zero = SimpleNamespace(gradient=gradient)  # type: ignore[assignment]
    return made


def test_copies_to_the_host_are_waited_for_before_the_norm_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient is what it will be only when the device has finished."""
    on_host = torch.full((3,), float("nan"))
    waited: list[torch.device] = []

    def finish(device: torch.device) -> None:
        waited.append(device)
        on_host.copy_(torch.tensor([2.0, 3.0, 6.0]))

    monkeypatch.setattr(torch.cuda, "synchronize", finish)
    assert engine(lambda _: on_host, copies=True).gradient_norm() == 7.0
    assert waited == [torch.device("cpu")], "the parameters' device, once"
    engine(lambda _: on_host, copies=False).gradient_norm()
    assert len(waited) == 1, "without offloading there is nothing to wait for"


@pytest.mark.parametrize(
    ("free", "ranks", "device", "expected"),
    [
        (PINNED_BYTES * 500 * 4, 8, "cuda:3", True),
        (PINNED_BYTES * 500 * 4 - 1, 8, "cuda:3", False),
        (PINNED_BYTES * 500 * 2, 2, "cuda:1", True),
        (PINNED_BYTES * 500 * 8, 8, "cpu", False),
    ],
)
def test_states_are_pinned_where_there_is_room_for_all_ranks_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, free: int, ranks: int, device: str, expected: bool
) -> None:
    """1,000 parameters in two partitions; machines of four GPUs, of which a rank sees its own."""
    monkeypatch.setattr(deepspeed, "host_available", lambda: free)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    def gathered(value: tuple[str, int]) -> list[tuple[str, int]]:
        return [(f"{value[0]} {rank // 4}", value[1]) for rank in range(ranks)]

    world = SimpleNamespace(size=ranks, all_gather_object=gathered)
    mesh = Mesh(world=world, replicas=Group((0, 1)))  # type: ignore[arg-type]
    assert may_pin(torch.device(device), 1000, mesh) == expected
