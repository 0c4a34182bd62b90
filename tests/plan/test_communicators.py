"""Communicators that a plan counts: those that a mesh makes."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from bc2.parallel import mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.plan.candidate_layouts import CandidateLayout
from bc2.plan.communicators import COMMUNICATOR, communicator_bytes, communicators
from bc2.plan.devices import DEVICES, find_device
from bc2.plan.training_plan import make_plan, workload_of
from bc2.recipe import load
from bc2.train.training_settings import TrainingSettings


def made_by_mesh(parallel: ParallelConfig, world: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many groups of several ranks rank 0 gets that use its own device."""
    handles: list[object] = []

    def new_group(ranks: Any, backend: str | None = None, timeout: Any = None) -> object:
        handles.append(object())
        return handles[-1]

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "new_group", new_group)
    found = mesh._groups(parallel, world, timedelta(seconds=1))
    groups = (found.world, found.tensor, found.sequence, found.data, found.replicas)
    return len({id(group.handle) for group in groups if group.size > 1})


def test_they_are_those_of_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    for world, tensor, sequence in itertools.product((2, 4, 8, 16), (1, 2, 4), (1, 2)):
        if world % (tensor * sequence) == 0:
            parallel = ParallelConfig(tensor=tensor, sequence=sequence, zero=1)
            made = made_by_mesh(parallel, world, monkeypatch)
            assert len(communicators(parallel, world)) == made, (world, tensor, sequence)


def test_by_hand() -> None:
    assert communicators(ParallelConfig(), 1) == []
    assert communicators(ParallelConfig(zero=2), 8) == ["world"]
    assert communicators(ParallelConfig(zero=3, zero_group=8), 16) == ["world", "zero_group"]
    three = ParallelConfig(tensor=2, sequence=2, zero=1)
    assert communicators(three, 8) == ["world", "tensor", "sequence", "data", "replicas"]
    # Half a MiB, 4.6875 MiB and 4 MiB for each of 24 channels.
    assert COMMUNICATOR == 24 * 9.1875 * 2**20
    assert communicator_bytes(three, 8) == 5 * COMMUNICATOR


def candidate(device: str, gpus: int, **parallel: Any) -> CandidateLayout:
    settings = TrainingSettings.of(load("7b", []))
    found = find_device(device, count=gpus, flops=1e12)
    return CandidateLayout(workload_of(settings, found, gpus), ParallelConfig(**parallel), 1, 1)


def test_a_plan_counts_them_and_gloo_has_none() -> None:
    layout = candidate("h100", 8, tensor=2, zero=2)
    assert layout.communicators == 4 * COMMUNICATOR
    assert layout.total == layout.memory.total + layout.communicators
    said = layout.as_json()["memory"]
    assert said["communicators"] == layout.communicators
    assert said["total"] == sum(size for name, size in said.items() if name != "total")
    assert candidate("cpu", 8, tensor=2, zero=2).communicators == 0


def test_what_only_they_make_too_large_does_not_fit() -> None:
    layout = candidate("h100", 8, tensor=2, zero=2)
    device = layout.work.device
    room = (layout.total - 1 + device.memory * 0.93 - device.usable) / 0.93
    plan_of = load("7b", ["parallel.tensor=2", "pretrain.activation_checkpointing=1"])
    small = find_device("h100", memory=f"{room:.0f}")
    own = make_plan(plan_of, small, 8).own
    assert own is not None
    assert own.memory.total < small.usable < own.total
    assert not own.fits


def test_devices_are_those_of_the_datasheets() -> None:
    assert DEVICES["h200"].memory == 143_771 * 2**20
    assert DEVICES["h100-pcie"].flops == 756e12
    assert {device.kind for device in DEVICES.values()} == {"cuda"}
