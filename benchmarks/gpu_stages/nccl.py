"""Process groups: one rank over NCCL, and two processes that train on one device over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bc2.parallel.mesh import make_mesh
from gpu_stages.checks import Checks
from gpu_stages.plain_configs import Layout
from gpu_stages.training import MIDDLE, SMALL, counting, engine_of, moved, packed, step, weights_of

STEPS = 4

#: Relative error of losses, and of the way that the weights went.
LIMITS = {"losses": 2e-5, "weights": 3e-2}
WHY = "fp32 gradients are summed in another order"

#: Seconds that a process waits for the other in a collective.
_WAIT_S = 60


def run(checks: Checks, part: str) -> None:
    """`part` is "all", or names a rank of the second half."""
    if part != "all":
        _rank(checks)
        return
    with checks.part("one rank"):
        _one_rank(checks)
    with checks.part("two processes on one device"):
        _two_ranks(checks)


def _one_rank(checks: Checks) -> None:
    backend = "gloo" if checks.small else "nccl"
    if checks.small:
        checks.not_run("NCCL", "it needs a GPU; the same is checked over gloo")
    store = dist.HashStore()
    dist.init_process_group(
        backend, store=store, rank=0, world_size=1, timeout=timedelta(seconds=20)
    )
    try:
        box: list[Any] = [None]
        dist.all_gather_object(box, {"rank": 0, "words": ["a", "b"]})
        good = box[0] == {"rank": 0, "words": ["a", "b"]}
        checks.true(f"{backend}: objects are gathered", good, box[0], "ranks agree by objects")
        held = [("x", 1)]
        dist.broadcast_object_list(held, src=0)
        checks.true(f"{backend}: objects are sent", held == [("x", 1)], held, "as above")
        for name, group in (
            ("the world", dist.group.WORLD),
            ("a new group", dist.new_group([0], timeout=timedelta(seconds=20))),
        ):
            x = torch.arange(1000, dtype=torch.float32, device=checks.device)
            dist.all_reduce(x, group=group)
            good = bool((x == torch.arange(1000, device=x.device)).all())
            why = "gradients are summed so"
            checks.true(f"{backend}: a sum over {name}", good, f"the same: {good}", why)
        side = dist.new_group([0], backend="gloo")
        dist.all_gather_object(box, 7, group=side)
        checks.true("gloo beside it", box[0] == 7, box[0], "checkpoints are agreed on there")
    finally:
        dist.destroy_process_group()


def _two_ranks(checks: Checks) -> None:
    """Two processes with half of the rows each, against one with all of them."""
    engine = engine_of(_model(checks), checks.device, "fp32")
    first = weights_of(engine)
    losses = [step(engine, [packed(rows)]).loss for rows in _rows(checks)]
    found = _start_ranks(checks)
    gap = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], losses, strict=True))
    checks.within("two processes, losses", gap, LIMITS["losses"], WHY)
    weights = torch.load(checks.scratch / "ranks.pt")
    gap = moved(weights, weights_of(engine), first)
    checks.within("two processes, weights", gap, LIMITS["weights"], WHY)


def _start_ranks(checks: Checks) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in (place | where).items()}
        command = [sys.executable, "-P", *sys.argv[:3], f"rank {rank}", *sys.argv[4:]]
        processes.append(subprocess.Popen(command, env={**os.environ, **environment}))
    try:
        codes = [process.wait(max(1.0, checks.left() - 3.0)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"the two processes ended with exit codes {codes}")
    found: dict[str, Any] = json.loads((checks.scratch / "ranks.json").read_text(encoding="utf-8"))
    return found


def _rank(checks: Checks) -> None:
    # NCCL takes no two ranks on one device: the group is there before bc2 would open one.
    dist.init_process_group("gloo", timeout=timedelta(seconds=_WAIT_S))
    mesh = make_mesh(Layout(), checks.device)
    engine = engine_of(_model(checks), checks.device, "fp32", mesh=mesh)
    losses = []
    for rows in _rows(checks):
        mine = packed(rows[mesh.world.rank :: 2])
        tokens = engine.agree(mine.weights, mine.tokens.size, False).weights["tokens"]
        losses.append(step(engine, [mine], tokens=tokens).loss)
    weights = engine.snapshot().weights
    parts = mesh.world.all_gather_object({f.name: (f.first, f.data) for f in weights.fragments})
    if mesh.first:
        whole = {
            name: torch.cat([p[name][1] for p in parts if name in p]).view(shape)
            for name, shape in weights.shapes.items()
        }
        torch.save(whole, checks.scratch / "ranks.pt")
        text = json.dumps({"losses": losses})
        (checks.scratch / "ranks.json").write_text(text, encoding="utf-8")
    dist.destroy_process_group()


def _model(checks: Checks):  # type: ignore[no-untyped-def]
    return SMALL if checks.small else MIDDLE


def _rows(checks: Checks):  # type: ignore[no-untyped-def]
    length = 64 if checks.small else 512
    return [counting(_model(checks), 4, length, seed) for seed in range(STEPS)]
