"""What the pictures of runs are drawn with: colours, axes, and curves of very many points."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bc2.report.history import CurveAxis, History
from bc2.train.speed.mfu import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Most points of a drawn curve, so that a long run's page stays small.
LIMIT = 2000

#: Colours by role; in a page each is a CSS variable of this name, so that it may be dark.
COLORS = {
    "ink": "#3b3f46",
    "grid": "#d9dce1",
    "train": "#9db8d9",
    "median": "#2e5c8a",
    "heldout": "#d1495b",
    "norm": "#6c7a89",
    "limit": "#c8553d",
    "rate": "#00798c",
    "speed": "#5b8e4c",
    "restart": "#7b5ea7",
    "bad": "#e09f3e",
}
#: Colours of the parts of a step, in their order.
PART_COLORS = (
    "#4e79a7",
    "#f28e2b",
    "#e15759",
    "#76b7b2",
    "#59a14f",
    "#b07aa1",
    "#9c755f",
    "#bab0ac",
)

#: How bc2's pictures are drawn.
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": COLORS["ink"],
    "axes.labelcolor": COLORS["ink"],
    "xtick.color": COLORS["ink"],
    "ytick.color": COLORS["ink"],
    "text.color": COLORS["ink"],
    "grid.color": COLORS["grid"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def thin(y: Floats, limit: int = LIMIT) -> NDArray[np.intp]:
    """Which of many points to draw: the first, the last, and each bin's lowest and highest.

    Args:
        y: finite values.
        limit: about how many indices to return; all of them if there are no more.

    Returns:
        Indices into `y`, rising.
    """
    if len(y) <= limit:
        return np.arange(len(y))
    edges = np.linspace(0, len(y), limit // 2 + 1).astype(np.intp)
    kept = {0, len(y) - 1}
    for begin, end in pairwise(edges):
        kept.add(int(begin + np.argmin(y[begin:end])))
        kept.add(int(begin + np.argmax(y[begin:end])))
    return np.array(sorted(kept), dtype=np.intp)


def running_median(y: Floats, points: int = 400) -> tuple[NDArray[np.intp], Floats]:
    """A median over about a thirtieth of the run, which spikes do not bend.

    Returns:
        Indices into `y`, at most `points`, and the median around each.
    """
    reach = max(2, len(y) // 60)
    at = np.unique(np.linspace(0, len(y) - 1, min(points, len(y))).astype(np.intp))
    # Fewer points at both ends, so that the median begins and ends where the run does.
    reaches = np.minimum(reach, np.minimum(at, len(y) - 1 - at))
    return at, np.array([np.median(y[i - r : i + r + 1]) for i, r in zip(at, reaches, strict=True)])


@dataclass(frozen=True)
class Ruler:
    """The horizontal axis: steps, or tokens in a unit that fits their number."""

    axis: CurveAxis
    unit: float
    label: str

    @classmethod
    def of(cls, history: History, axis: CurveAxis) -> Ruler:
        if axis == "step":
            return cls(axis, 1, "steps")
        farthest = max(history.steps["tokens"], default=0)
        units = {1e9: "billions", 1e6: "millions", 1e3: "thousands"}
        for unit, name in units.items():
            if farthest >= unit:
                return cls(axis, unit, f"tokens ({name})")
        return cls(axis, 1, "tokens")

    def of_columns(self, columns: Any) -> Floats:
        return np.asarray(columns[self.axis] / self.unit)


def curve(axes: Axes, x: Floats, y: Floats, color: str, label: str = "", **style: Any) -> None:
    """One line through the finite values; points as well where they are few."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    kept = thin(y)
    few = {"marker": ".", "markersize": 5} if len(kept) <= 40 else {}
    axes.plot(x[kept], y[kept], color=color, label=label, **{**few, **style})
