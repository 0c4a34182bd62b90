"""Compiled training against eager training, and whether the number of graphs settles."""

from __future__ import annotations

import time

import torch
from torch._dynamo.utils import counters

from bc2.train.engines.base import Engine
from gpu_stages.checks import Checks
from gpu_stages.training import MIDDLE, SMALL, counting, engine_of, packed, step

STEPS, SETTLED = 8, 4

#: Relative error of losses and norms.
LIMITS = {"fp32": (1e-5, 1e-3), "bf16": (5e-3, 5e-2)}
WHY = "compiled kernels round in other places"


def run(checks: Checks, part: str) -> None:
    """Steps over documents whose number and lengths change from step to step."""
    small = checks.small
    model = SMALL.model_copy(update={"num_layers": 1}) if small else MIDDLE
    precision = "fp32" if small else "bf16"
    length = 64 if small else 1024
    eager = engine_of(model, checks.device, precision)
    compiled = engine_of(model, checks.device, precision, compile=True)
    if checks.small and hasattr(torch.compiler, "set_default_backend"):
        checks.not_run("generated code", "the small form runs the graphs without it, to save time")
    # The log says which guard of which graph did not hold.
    torch._logging.set_logs(recompiles=True)
    counters.clear()
    losses, norms, graphs = 0.0, 0.0, []
    for number in range(STEPS):
        rows = counting(model, 2, length, number)
        expected = step(eager, [packed(rows)])
        began = time.perf_counter()
        found = step(compiled, [packed(rows)])
        if number == 0:
            checks.figure("first compiled step", round(time.perf_counter() - began, 1), "s")
        losses = max(losses, abs(found.loss / expected.loss - 1))
        norms = max(norms, abs(found.norm / expected.norm - 1))
        graphs.append(_graphs())
    with checks.part("computed again"):
        _recompute(checks, eager, compiled, length, precision)
    checks.within("losses", losses, LIMITS[precision][0], WHY)
    checks.within("gradient norms", norms, LIMITS[precision][1], WHY)
    checks.true(
        "graphs settle",
        0 < graphs[-1] == graphs[SETTLED - 1],
        f"graphs after each step: {graphs}",
        f"after {SETTLED} steps new documents must compile nothing, or each step takes seconds",
    )
    checks.figure("graphs", graphs[-1], key=True)
    checks.figure("graphs compiled after the first step", graphs[-1] - graphs[0])
    breaks = sum(counters["graph_break"].values())
    checks.figure("graph breaks", breaks, key=True)
    # By reason, whose first lines say what and why.
    reasons = {reason[:400]: count for reason, count in counters["graph_break"].items()}
    checks.record("graph breaks", {"reasons": reasons})


def _recompute(
    checks: Checks, eager: Engine, compiled: Engine, length: int, precision: str
) -> None:
    """Layers that run once more in the backward pass: on a GPU, in a thread of autograd's."""
    compiled.model.model.checkpointing = 1
    gaps, graphs = [], []
    for number in range(STEPS, STEPS + 3):
        rows = counting(eager.model.config, 2, length, number)
        expected, found = (step(engine, [packed(rows)]) for engine in (eager, compiled))
        gaps.append(abs(found.norm / expected.norm - 1))
        graphs.append(_graphs())
    compiled.model.model.checkpointing = 0
    checks.within("computed again: gradient norms", max(gaps), LIMITS[precision][1], WHY)
    saw, why = f"graphs after each step: {graphs}", "the thread may compile once, not in each step"
    checks.true("computed again: graphs settle", graphs[0] == graphs[-1], saw, why)


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])
