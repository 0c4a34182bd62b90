"""An IsoFLOP law as a picture: the valley of each budget, and how the best size grows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bc2.report.picture_files import save_figure
from bc2.report.plotting import COLORS, STYLE
from bc2.scaling.isoflop import Growth, Optima
from bc2.scaling.points import Points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_optima(
    optima: Optima, params: Growth, points: Points | None, conventions: str, path: Path
) -> list[Path]:
    """Draw ``path``.svg and ``path``.png.

    Args:
        points: the runs; None where only their optima are known.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return save_figure(_figure(optima, params, points, conventions), path)


def _figure(optima: Optima, params: Growth, points: Points | None, conventions: str) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.5, 7 if points else 4))
    drawn.set_layout_engine("constrained")
    drawn.suptitle(conventions, fontsize=9)
    panels = drawn.subplots(2 if points else 1, 1, squeeze=False)[:, 0]
    if points is not None:
        _valleys(panels[0], optima, points)
    _growth(panels[-1], optima, params)
    return drawn


def _valleys(axes: Axes, optima: Optima, points: Points) -> None:
    """The runs of each budget, and the minimum of its interpolant."""
    from matplotlib import colormaps

    budgets = np.log(optima.flops)
    color = colormaps["viridis"]
    for at, flops in enumerate(optima.flops):
        one = points.take(np.abs(points.logs("flops") - np.log(flops)) < 0.01)
        order = np.argsort(one.params)
        shade = color((budgets[at] - budgets[0]) / max(float(np.ptp(budgets)), 1e-9))
        axes.plot(one.params[order], one.loss[order], ".-", color=shade, linewidth=0.8)
        if optima.loss is not None:
            axes.plot(optima.params[at], optima.loss[at], "D", color=shade, markersize=5)
    unit = f"loss ({points.conventions.loss} a token)"
    axes.set(xscale="log", xlabel="parameters N", ylabel=unit)


def _growth(axes: Axes, optima: Optima, params: Growth) -> None:
    line = np.geomspace(optima.flops.min(), optima.flops.max(), 50)
    label = f"C^{params.exponent.value:.3f}"
    axes.plot(line, [params.at(flops) for flops in line], color=COLORS["median"], label=label)
    axes.plot(optima.flops, optima.params, "D", color=COLORS["heldout"], label="optimum")
    if optima.parabola is not None:
        axes.plot(optima.flops, optima.parabola, "x", color=COLORS["norm"],
                        label="by a parabola (biased)")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs C", ylabel="best N")
    axes.legend()
