"""The curves of a run, drawn by matplotlib into files and pages.

Only matplotlib's object interface is used, which has no global state as pyplot has.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bc2.files import why_not_writable
from bc2.report.history import CurveAxis, History
from bc2.report.picture_files import save_figure
from bc2.train.log_rows import METRICS
from bc2.train.mfu import IMPOSSIBLE, Floats, impossible
from bc2.train.runs import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG = "loss.svg"

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


def run_figure(
    history: History, axis: CurveAxis, *, clip_norm: float | None, title: str = ""
) -> Figure:
    """Every curve of a run over tokens or over steps, one panel below the other.

    Loss, gradient norm, learning rate; tokens/s, MFU and the time of a step by part as
    far as they were logged. Restarts, skipped and rolled back steps are marked.
    """
    import matplotlib
    from matplotlib.figure import Figure

    ruler, times = Ruler.of(history, axis), history.times()
    panels: list[tuple[float, Callable[[Axes], None]]] = [
        (3, lambda axes: _loss(axes, history, ruler)),
        (1.3, lambda axes: _norm(axes, history, ruler, clip_norm)),
        (1, lambda axes: _rate(axes, history, ruler)),
    ]
    if len(times["step"]):
        panels += [
            (1, lambda axes: _speed(axes, times, ruler)),
            (1, lambda axes: _mfu(axes, times, ruler)),
        ]
    if len(times["step"]) > 1 and any(name.startswith("parts.") for name in times):
        panels.append((1.5, lambda axes: _parts(axes, times, ruler)))
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(9, 1.15 * sum(height for height, _ in panels) + 0.5))
        drawn.set_layout_engine("constrained")
        drawn.suptitle(title)
        heights = [height for height, _ in panels]
        grid = drawn.subplots(len(panels), 1, sharex=True, height_ratios=heights)
        for (_, draw), axes in zip(panels, grid, strict=True):
            draw(axes)
            _mark(axes, history, ruler)
        _legend(grid[0])
        grid[-1].set_xlabel(ruler.label)
        drawn.align_ylabels()
    return drawn


def _curve(axes: Axes, x: Floats, y: Floats, color: str, label: str = "", **style: Any) -> None:
    """One line through the finite values; points as well where they are few."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    kept = thin(y)
    few = {"marker": ".", "markersize": 5} if len(kept) <= 40 else {}
    axes.plot(x[kept], y[kept], color=COLORS[color], label=label, **{**few, **style})


def _loss(axes: Axes, history: History, ruler: Ruler) -> None:
    x, loss = ruler.of_columns(history.steps), history.steps["ce"]
    _curve(axes, x, loss, "train", "training", linewidth=0.8)
    finite = np.isfinite(loss)
    if finite.sum() >= 20:
        at, median = running_median(loss[finite])
        name = "training, running median"
        axes.plot(x[finite][at], median, color=COLORS["median"], linewidth=1.6, label=name)
    if len(history.evals):
        x, heldout = ruler.of_columns(history.evals), history.evals["heldout_loss"]
        _curve(axes, x, heldout, "heldout", "held-out", linewidth=1.4)
    axes.set_ylabel("loss (nats per token)")


def _norm(axes: Axes, history: History, ruler: Ruler, clip_norm: float | None) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    norm = history.steps["grad_norm"]
    _curve(axes, ruler.of_columns(history.steps), norm, "norm", linewidth=0.8)
    axes.set_ylabel("gradient norm")
    positive = norm[norm > 0]
    if len(positive):
        axes.set_yscale("log")
        narrow = np.nanmax(positive) < 50 * np.nanmin(positive)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if clip_norm is not None:
        name = f"clipped above {clip_norm:g}"
        axes.axhline(clip_norm, color=COLORS["limit"], linewidth=1, linestyle="--", label=name)
        axes.legend(loc="upper right")


def _rate(axes: Axes, history: History, ruler: Ruler) -> None:
    _curve(axes, ruler.of_columns(history.steps), history.steps["lr"], "rate", linewidth=1.4)
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.1 * np.nanmax(history.steps["lr"], initial=1e-12))


def _speed(axes: Axes, times: dict[str, Floats], ruler: Ruler) -> None:
    _curve(axes, ruler.of_columns(times), times["tokens_per_s"], "speed", linewidth=0.8)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)


def _mfu(axes: Axes, times: dict[str, Floats], ruler: Ruler) -> None:
    _curve(axes, ruler.of_columns(times), 100 * times["mfu"], "speed", linewidth=0.8)
    axes.set_ylabel("MFU (%)")
    axes.set_ylim(bottom=0)
    if impossible(np.nanmax(times["mfu"], initial=0.0)):
        name = f"above 100% {IMPOSSIBLE}"
        axes.axhline(100, color=COLORS["limit"], linewidth=1, linestyle="--", label=name)
        axes.legend(loc="lower right")


def _parts(axes: Axes, times: dict[str, Floats], ruler: Ruler) -> None:
    """Mean seconds of each part, stacked; a single slow step may be cut off at the top."""
    x = ruler.of_columns(times)
    edges = np.unique(np.linspace(0, len(x), min(len(x), 120) + 1).astype(np.intp))
    counts = np.diff(edges)
    names = [name for name in times if name.startswith("parts.")]
    means = [np.add.reduceat(np.nan_to_num(times[name]), edges[:-1]) / counts for name in names]
    middle = np.add.reduceat(x, edges[:-1]) / counts
    labels = [name.removeprefix("parts.") for name in names]
    axes.stackplot(middle, means, labels=labels, colors=PART_COLORS, linewidth=0)
    axes.set_ylim(top=2 * np.quantile(np.sum(means, axis=0), 0.95))
    axes.set_ylabel("seconds a step")
    axes.legend(loc="upper right", ncols=len(names))


def _mark(axes: Axes, history: History, ruler: Ruler) -> None:
    """Restarts, and steps that were not made, as vertical lines."""
    restarts = history.restarts(ruler.axis) / ruler.unit
    _verticals(axes, restarts, "restart", "restart", linestyle="--")
    names = {"skip": "skipped", "rollback": "rolled back", "stop": "ended by a bad step"}
    for event, name in names.items():
        rows = [row for row in history.bad if row["event"] == event]
        at = np.array([row[ruler.axis] for row in rows], dtype=np.float64) / ruler.unit
        style = {"skip": ":", "rollback": "-.", "stop": "-"}[event]
        _verticals(axes, at, "bad", name, linestyle=style)
    if ruler.axis == "tokens":
        spans = [(begin / ruler.unit, width / ruler.unit) for begin, width in _left_out(history)]
        across = axes.get_xaxis_transform()
        axes.broken_barh(
            spans, (0, 1), transform=across, color=COLORS["bad"], alpha=0.2, linewidth=0
        )


def _verticals(axes: Axes, at: Floats, color: str, label: str, *, linestyle: str) -> None:
    """Lines at `at` as one path, however many they are."""
    if not len(at):
        return
    x = np.repeat(at, 3)
    y = np.tile([0.0, 1.0, np.nan], len(at))
    axes.plot(
        x, y, transform=axes.get_xaxis_transform(), color=COLORS[color], label=label,
        linewidth=1, linestyle=linestyle,
    )  # fmt: skip


def _left_out(history: History) -> list[tuple[float, float]]:
    """Begin and width, in tokens, of data that was read and left out of training."""
    spans = []
    for row in history.bad:
        if row["event"] != "stop":
            first, last = row["samples"]
            a_sample = row["tokens"] / (last + 1)
            spans.append((first * a_sample, (last + 1 - first) * a_sample))
    return spans


def _legend(axes: Axes) -> None:
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(loc="upper right")


def inline_svg(drawn: Figure, name: str) -> str:
    """A figure as an ``<svg>`` element for a page: fluid, in the page's font and colours.

    Args:
        name: tells its inner ids from those of the page's other figures.
    """
    import matplotlib

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    out = io.StringIO()
    with matplotlib.rc_context(style):
        drawn.savefig(out, format="svg", transparent=True, metadata=nothing)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # In HTML the namespaces are known; the ids of groups would not be unique in a page.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' width="[^"]*pt" height="[^"]*pt"| height="[^"]*pt"| width="[^"]*pt"', "", svg)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    for role, color in COLORS.items():
        svg = svg.replace(color, f"var(--{role})")
    return svg


def draw_run(run: RunFolder, history: History | None = None) -> list[Path]:
    """Draw ``loss.svg`` and ``loss.png`` into the run's folder, over tokens.

    Returns:
        The two paths.
    """
    history = history or History.read(run)
    facts = run.facts
    clip_norm = facts.clip_norm if facts else None
    drawn = run_figure(history, "tokens", clip_norm=clip_norm, title=run.path.name)
    return save_figure(drawn, run.path / "loss")


def redraw(run: RunFolder) -> None:
    """Draw the curves of a run, unless they are newer than its metrics."""
    metrics, plot = run.path / METRICS, run.path / SVG
    if not metrics.exists():
        return
    if why_not_writable(run.path):  # what is there is as old as the folder
        return
    if not plot.exists() or plot.stat().st_mtime < metrics.stat().st_mtime:
        draw_run(run)
