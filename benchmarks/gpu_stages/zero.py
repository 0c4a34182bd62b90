"""DeepSpeed's ZeRO against the local engine, on one rank."""

from __future__ import annotations

import importlib.util

import torch
import torch.distributed as dist

from bc2.parallel.mesh import Group, Mesh
from gpu_stages.checks import Checks
from gpu_stages.plain_configs import AdamW, Layout
from gpu_stages.training import MIDDLE, SMALL, counting, engine_of, packed, step

STEPS = 4

#: Relative error of losses and norms.
LIMITS = {"fp32": (2e-5, 2e-3), "bf16": (5e-3, 5e-2)}
WHY = "sums in another order; in bf16 DeepSpeed rounds embedding, head and gradients too"


def run(checks: Checks, part: str) -> None:
    """Every stage, with and without offload; what an engine leaves does not help the next.

    The last is compiled, as training is on a GPU: the hooks that gather weights stay outside.
    """
    layouts = [(zero, offload, False) for zero in (1, 2, 3) for offload in (False, True)]
    layouts.append((3, False, True))
    if importlib.util.find_spec("deepspeed") is None:
        for layout in layouts:
            checks.not_run(_name(*layout), "DeepSpeed is not installed")
        return
    device = checks.device
    backend = "gloo" if checks.small else "nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    precision = "fp32" if checks.small else "bf16"
    model = SMALL if checks.small else MIDDLE
    rows = [counting(model, 2, 64 if checks.small else 512, seed) for seed in range(STEPS)]
    local = engine_of(model, device, precision)
    expected = [step(local, [packed(r[:1]), packed(r[1:])]) for r in rows]
    for zero, offload, compiled in layouts:
        name = _name(zero, offload, compiled)
        with checks.part(name):
            layout = Layout(zero=zero, offload_optimizer=offload)
            engine = _engine(model, device, precision, layout, compiled)
            found = [step(engine, [packed(r[:1]), packed(r[1:])]) for r in rows]
            gaps = zip(found, expected, strict=True)
            pairs = [(abs(f.loss / e.loss - 1), abs(f.norm / e.norm - 1)) for f, e in gaps]
            of_losses, of_norms = LIMITS[precision]
            checks.within(f"{name}: losses", max(p[0] for p in pairs), of_losses, WHY)
            checks.within(f"{name}: norms", max(p[1] for p in pairs), of_norms, WHY)
            del engine
            if device.type == "cuda":
                torch.cuda.empty_cache()
    dist.destroy_process_group()


def _name(zero: int, offload: bool, compiled: bool) -> str:
    return f"ZeRO {zero}{' with offload' if offload else ''}{', compiled' if compiled else ''}"


def _engine(model, device, precision, layout, compiled):  # type: ignore[no-untyped-def]
    from bc2.train.engines.deepspeed import DeepSpeedEngine

    # `make_engine` leaves DeepSpeed out on one rank, where it saves nothing.
    mesh = Mesh(replicas=Group(handle=dist.group.WORLD))
    optimizer = AdamW(learning_rate=1e-3)
    return DeepSpeedEngine(
        model, optimizer, layout, mesh, device=device, precision=precision, compile=compiled
    )
