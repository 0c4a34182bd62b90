"""The curves of a run, drawn by matplotlib into files and pages.

Only matplotlib's object interface is used, which has no global state as pyplot has.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bc2.files import why_not_writable
from bc2.report.history import CurveAxis, History
from bc2.report.metric_panels import metric_panels
from bc2.report.picture_files import save_figure
from bc2.report.plotting import COLORS, PART_COLORS, STYLE, Ruler, curve
from bc2.train.logs.log_rows import METRICS
from bc2.train.logs.runs import RunFolder
from bc2.train.speed.mfu import IMPOSSIBLE, Floats, impossible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG = "loss.svg"


def run_figure(
    history: History, axis: CurveAxis, *, clip_norm: float | None, title: str = ""
) -> Figure:
    """Every curve of a run over tokens or over steps, one panel below the other.

    What the run measures, a panel for each unit; gradient norm, learning rate; tokens/s, MFU and
    the time of a step by part as far as they were logged. Restarts, skipped and rolled back
    steps are marked.
    """
    import matplotlib
    from matplotlib.figure import Figure

    ruler, times, measured = Ruler.of(history, axis), history.times(), metric_panels(history)
    panels: list[tuple[float, Callable[[Axes], None]]] = [
        *((one.height, partial(one.draw, history=history, ruler=ruler)) for one in measured),
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
        _legend(grid[0], low=measured[0].rises)
        grid[-1].set_xlabel(ruler.label)
        drawn.align_ylabels()
    return drawn


def _norm(axes: Axes, history: History, ruler: Ruler, clip_norm: float | None) -> None:
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    norms = history.of_models("grad_norm")
    _of_models(axes, history, ruler, norms, COLORS["norm"], linewidth=0.8)
    axes.set_ylabel("gradient norm")
    every = np.concatenate([*norms.values()])
    positive = every[every > 0]
    if len(positive):
        axes.set_yscale("log")
        narrow = np.nanmax(positive) < 50 * np.nanmin(positive)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if clip_norm is not None:
        name = f"clipped above {clip_norm:g}"
        axes.axhline(clip_norm, color=COLORS["limit"], linewidth=1, linestyle="--", label=name)
    if clip_norm is not None or len(norms) > 1:
        axes.legend(loc="upper right")


def _rate(axes: Axes, history: History, ruler: Ruler) -> None:
    rates = history.of_models("lr")
    _of_models(axes, history, ruler, rates, COLORS["rate"], linewidth=1.4)
    axes.set_ylabel("learning rate")
    axes.set_ylim(0, 1.1 * np.nanmax(np.concatenate([*rates.values()]), initial=1e-12))
    if len(rates) > 1:
        axes.legend(loc="upper right")


def _of_models(
    axes: Axes, history: History, ruler: Ruler, values: Mapping[str, Floats], color: str,
    *, linewidth: float,
) -> None:  # fmt: skip
    """A curve for each trained model; the product's in a colour of the panel."""
    x, several = ruler.of_columns(history.steps), len(values) > 1
    for number, (role, y) in enumerate(values.items()):
        name = (role or "model") if several else ""
        each = PART_COLORS[number % len(PART_COLORS)] if role else color
        curve(axes, x, y, each, name, linewidth=linewidth)


def _speed(axes: Axes, times: dict[str, Floats], ruler: Ruler) -> None:
    curve(axes, ruler.of_columns(times), times["tokens_per_s"], COLORS["speed"], linewidth=0.8)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)


def _mfu(axes: Axes, times: dict[str, Floats], ruler: Ruler) -> None:
    curve(axes, ruler.of_columns(times), 100 * times["mfu"], COLORS["speed"], linewidth=0.8)
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


def _legend(axes: Axes, *, low: bool) -> None:
    """At the end of the curves; below them if they rise."""
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(loc="lower right" if low else "upper right")


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
