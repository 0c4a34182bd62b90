"""Each rank's GPU is current before the first collective, and no other rank has it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from bc2.errors import UsageError
from bc2.parallel import mesh
from bc2.parallel.own_device import check_own_gpu, make_current
from bc2.parallel.parallel_config import ParallelConfig
from bc2.process.launcher_variables import Place

Spread = Callable[..., list[list[list[float]]]]

DRIVER = Path(__file__).with_name("gpu_driver.py")


def meet(monkeypatch: pytest.MonkeyPatch, gpus: list[str]) -> list[str | None]:
    """What each rank says of the GPUs that they have, by number; each a thread."""

    def properties(device: torch.device) -> Any:
        return SimpleNamespace(name="H200", uuid=gpus[device.index])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    store = dist.HashStore()  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=20))

    def check(rank: int) -> str | None:
        try:
            # Its number stands for the GPU that it sees as whatever number.
            check_own_gpu(store, torch.device("cuda", rank), Place(len(gpus), rank))
        except UsageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(gpus)) as ranks:
        return list(ranks.map(check, range(len(gpus))))


def test_ranks_with_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meet(monkeypatch, ["a0", "a1", "b0", "b1"]) == [None] * 4


def test_ranks_that_share_a_gpu_are_named_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    found = meet(monkeypatch, ["a0", "a1", "b0", "b0"])
    assert len(set(found)) == 1
    assert str(found[0]).startswith("ranks 2-3 have the same GPU (H200, b0); each needs its own")


def test_only_a_gpu_is_made_current(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    make_current(torch.device("cpu"))
    make_current(torch.device("cuda", 3))
    assert made == [torch.device("cuda", 3)]


@pytest.mark.parametrize("world", [1, 2])
def test_the_gpu_is_current_before_a_group_is_opened(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    device = torch.device("cuda", 1)

    def note(what: str) -> Callable[..., None]:
        return lambda *_, **__: order.append(what)

    for name, number in (("WORLD_SIZE", world), ("RANK", 0), ("LOCAL_RANK", 0)):
        monkeypatch.setenv(name, str(number))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: order.append(str(device)))
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(dist, "init_process_group", note("opened"))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(mesh, "check_own_gpu", note("met"))
    monkeypatch.setattr(mesh, "join_store", lambda _: dist.HashStore())  # type: ignore[attr-defined]
    if world > 1:
        mesh.all_ranks(device)
        assert order == ["cuda:1", "met", "opened"]
    else:
        monkeypatch.setattr(ParallelConfig, "on", lambda self, _: ParallelConfig(zero=1))
        assert mesh.make_mesh(ParallelConfig(zero=1), device).replicas.size == 1
        assert order == ["cuda:1", "opened"]


def test_two_ranks_that_see_one_gpu_each(spread: Spread) -> None:
    """Over gloo, with GPUs that are pretended: `gpu_driver.py` has what is checked."""
    (found,) = spread(2, [{}], driver=DRIVER)
    assert found == [[1.0]]
