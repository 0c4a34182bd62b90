"""The same training on this device and on the CPU, in other micro-batches."""

from __future__ import annotations

import torch

from gpu_stages.checks import Checks
from gpu_stages.training import MIDDLE, SMALL, counting, engine_of, moved, packed, step, weights_of

STEPS, CLIP = 6, 0.5

#: Relative error of losses and norms, and of the way that the weights went.
LIMITS = {"fp32": (2e-5, 2e-3, 3e-2), "bf16": (5e-3, 5e-2, 0.35)}
WHY = {
    "fp32": "sums in another order; Adam's first steps make of a gradient near 0 its sign",
    "bf16": "gradients have 8 bits, and Adam's first steps make of one near 0 its sign",
}


def run(checks: Checks, part: str) -> None:
    """Several steps with clipping, in fp32 and bf16, with RoPE and ALiBi."""
    for precision in ("fp32", "bf16"):
        for position in ("rope", "alibi"):
            name = f"{precision} {position}"
            with checks.part(name):
                _compare(checks, name, precision, position)


def _compare(checks: Checks, name: str, precision: str, position: str) -> None:
    shape = SMALL if checks.small else MIDDLE
    model = shape.model_copy(update={"position": position})
    length = 64 if checks.small else 256
    here = engine_of(model, checks.device, precision)
    there = engine_of(model, torch.device("cpu"), precision)
    first = weights_of(there)
    losses, norms, clipped = 0.0, 0.0, 0
    for number in range(STEPS):
        rows = counting(model, 2, length, number)
        mine = step(here, [packed(rows)], clip=CLIP)
        other = step(there, [packed(rows[:1]), packed(rows[1:])], clip=CLIP)
        losses = max(losses, abs(mine.loss - other.loss) / abs(other.loss))
        norms = max(norms, abs(mine.norm - other.norm) / other.norm)
        clipped += other.norm > CLIP
    limits, why = LIMITS[precision], WHY[precision]
    checks.within(f"{name}: losses", losses, limits[0], why)
    checks.within(f"{name}: gradient norms", norms, limits[1], why)
    checks.within(
        f"{name}: weights", moved(weights_of(here), weights_of(there), first), limits[2], why
    )
    checks.true(f"{name}: clipping", clipped > 0, f"{clipped} of {STEPS} steps", "is to be tested")
