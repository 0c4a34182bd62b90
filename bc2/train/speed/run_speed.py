"""The speed of a run's steps: what turns seconds into FLOP/s and MFU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from bc2.console import note
from bc2.parallel.mesh import Mesh
from bc2.train.device import pick_precision
from bc2.train.precision import Precision
from bc2.train.schedule import Speed
from bc2.train.speed.peak_flops import STEP, KeptPeaks, Peak, keep_peak, peak_flops
from bc2.train.speed.step_flops import flops_per_token

if TYPE_CHECKING:
    from bc2.train.run import Run


def speed_of(run: Run, mesh: Mesh) -> Speed:
    """The speed of a run's steps; measures the device's peak where it is not known."""
    config = run.config
    device = torch.device(config.device)
    precision = pick_precision(config.precision, device)
    kept = KeptPeaks.of_user()
    peak, source = peak_flops(device, precision, kept)
    ranks = f" on each of {mesh.world.size} ranks" if mesh.world.size > 1 else ""
    note(f"{device}, {config.precision}: peak {peak / 1e12:.2f} TFLOP/s{ranks} ({source})")
    matmul, attended = (flops_per_token(run.settings.models, row) for row in (0, 1))
    raised = _keep_raised(device, precision, peak, mesh, kept)
    return Speed(matmul, peak * mesh.world.size, raised, flops_per_pair=attended - matmul)


def _keep_raised(
    device: torch.device, precision: Precision, peak: float, mesh: Mesh, kept: KeptPeaks
) -> Callable[[float], None]:
    """Keeps, on the first rank, a peak that a step raised, and says so the first time."""
    told = False

    def raised(flops: float) -> None:
        nonlocal told
        if not mesh.first:
            return
        reached = flops / mesh.world.size
        if not told:
            note(
                f"a step reached {reached / 1e12:.2f} TFLOP/s: the peak of {peak / 1e12:.2f} was "
                "measured too low, and is raised to what steps reach"
            )
        told = True
        keep_peak(device, precision, Peak(reached, STEP), kept)

    return raised
