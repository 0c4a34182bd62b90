"""One of two ranks that see a single GPU each, as under ``srun --gpus-per-task=1``.

Run by `test_own_device`. torch's GPU is pretended and gloo stands for NCCL; the rest, DeepSpeed
included, is real.
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from driver import engine_of

from bc2.parallel import mesh as module
from bc2.parallel.mesh import make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.ranks import local_rank, place
from bc2.train.device import rank_device
from bc2.train.engines.deepspeed_model import import_deepspeed

LIMIT = timedelta(seconds=1234)


def limit_of(group: Any) -> timedelta:
    limit: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return limit


def groups_have_the_limit(ranks: module.Mesh) -> None:
    for group in (ranks.side, ranks.tensor, ranks.data, ranks.replicas):
        if group.handle is not None:
            assert limit_of(group.handle) == LIMIT, group
    assert ranks.timeout == LIMIT


def main() -> None:
    rank = int(os.environ["RANK"])
    made_current: list[torch.device] = []
    properties = SimpleNamespace(name="H200", uuid=f"gpu-{rank}")
    with (
        mock.patch.object(module, "_backend", return_value="gloo"),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(torch.cuda, "device_count", return_value=1),
        mock.patch.object(torch.cuda, "set_device", made_current.append),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
    ):
        device = rank_device("auto")
        assert device == torch.device("cuda", 0)
        ranks = make_mesh(ParallelConfig(zero=1, tensor=2), device, LIMIT.total_seconds())
    assert made_current
    assert set(made_current) == {device}
    groups_have_the_limit(ranks)
    assert ranks.world.all_gather_object(rank) == [0, 1]

    before = place()
    # DeepSpeed passes over a compiler that fails: what counts is whether one was tried.
    with mock.patch.object(subprocess, "Popen", side_effect=FileNotFoundError) as started:
        deepspeed = import_deepspeed(device, ranks)
        assert os.environ["LOCAL_RANK"] == "0"
        assert (local_rank(), place()) == (rank, before)
        made = deepspeed.comm.new_group([0, 1])
        assert limit_of(made) == LIMIT
        engine_of({"parallel": {"zero": 1, "tensor": 2}}, ranks)
    assert not started.called, started.call_args_list
    assert (local_rank(), place()) == (rank, before)
    if rank == 0:
        print(json.dumps([[1.0]]), flush=True)
    dist.barrier()


main()
