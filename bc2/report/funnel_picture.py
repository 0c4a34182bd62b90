"""The funnel drawn as in Figure 2 of Baichuan 2, ours beside the paper's; and histograms.

No text of a corpus is drawn, so that no font need know its letters: a page names languages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bc2.data.prep.funnel import Funnel, Histogram
from bc2.report.funnel_rows import PAPER, PAPER_KEPT, stage_rows
from bc2.report.picture_files import save_figure
from bc2.report.plotting import COLORS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Any = {**STYLE, "axes.titlesize": 10, "axes.grid": False}


class Bar(NamedTuple):
    """One step in shares of the raw text: what it removed, and what it left."""

    removed: float
    left: float


def figure(funnel: Funnel, title: str = "") -> Figure:
    """Ours by bytes, ours by documents, and the paper's; a line a stage, the raw text on top.

    A stage of the paper that did not run here has its line as well, and says so.
    """
    import matplotlib
    from matplotlib.figure import Figure

    found = {row.stage: row for row in stage_rows(funnel)}
    names = _lines(list(found))
    sizes = {n: Bar(r.bytes_removed_share or 0, r.bytes_left_share or 0) for n, r in found.items()}
    counts = {
        n: Bar(r.documents_removed_share or 0, r.documents_left_share or 0)
        for n, r in found.items()
    }
    paper = {name: Bar(step.removed, step.left) for name, step in PAPER.items()}
    kept = f"{PAPER_KEPT:.2%} left"
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(9, 0.55 * len(names) + 1.5))
        drawn.set_layout_engine("constrained")
        drawn.suptitle(title, parse_math=False)
        left, middle, right = drawn.subplots(1, 3, sharey=True)
        _panel(
            left, names, sizes, f"here, bytes: {_left(sizes)}", "off", some=bool(funnel.read.bytes)
        )
        _panel(
            middle, names, counts, f"here, documents: {_left(counts)}", "off",
            some=bool(funnel.read.documents),
        )  # fmt: skip
        _panel(right, names, paper, f"Baichuan 2, Figure 2: {kept}", "not in the figure", some=True)
        left.set_yticks(range(len(names)), names, parse_math=False)
    return drawn


def _lines(ours: Sequence[str]) -> list[str]:
    """ "raw", our stages in their order, and the paper's others after what they follow there."""
    names = ["raw", *ours]
    before = "raw"
    for name in PAPER:
        if name not in names:
            names.insert(names.index(before) + 1, name)
        before = name
    return names


def _left(bars: dict[str, Bar]) -> str:
    return f"{list(bars.values())[-1].left:.2%} left" if bars else "no stage"


def _change(removed: float) -> str:
    """What went with a minus sign; what a stage added, with a plus."""
    return f"{-removed or 0.0:{'+' if removed else ''}.2%}".replace("-", "\N{MINUS SIGN}")


def _panel(
    axes: Axes, names: Sequence[str], bars: dict[str, Bar], title: str, missing: str, *, some: bool
) -> None:
    """Bars from the top down; over each what it removed and what is left."""
    shown = {"raw": Bar(0, 1 if some else 0), **bars}
    for at, name in enumerate(names):
        bar = shown.get(name)
        if bar is None:
            words = missing
        else:
            axes.barh(at, bar.left, height=0.42, color=COLORS["median"])
            axes.barh(at, max(0, bar.removed), left=bar.left, height=0.42, color=COLORS["train"])
            words = f"{_change(bar.removed)}, {bar.left:.2%} left"
        if name == "raw":
            words = "100%" if some else "nothing was read"
        axes.text(0, at - 0.28, words, fontsize=8, va="bottom", alpha=0.6 if bar is None else 1)
    axes.set_title(title, loc="left", parse_math=False)
    axes.set_xlim(0, 1)
    # The raw text on top.
    axes.set_ylim(len(names) - 0.6, -0.8)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])


def histogram(found: Histogram, label: str, *, log: bool) -> Figure:
    """Documents by a value, as shares of all of them; from the first to the last that is there.

    Args:
        found: with a document in it, and two edges or more.
        label: of the horizontal axis.
        log: the values are drawn by their logarithm, from the first edge above zero on.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    bins = found.bins()
    edges = [*(one.low for one in bins), bins[-1].high]
    if math.isinf(edges[-1]):
        # A last bin without an end is drawn as wide as the one before.
        last, before = found.edges[-1], found.edges[-2]
        edges[-1] = last * last / before if log and before > 0 else 2 * last - before
    if log and edges[0] <= 0:
        # An axis of logarithms has no such place: a bar of some width before the others.
        edges[0] = edges[1] / 2
    whole = sum(one.documents for one in bins)
    heights = [100 * one.documents / whole for one in bins]
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(5, 2))
        drawn.set_layout_engine("constrained")
        axes = drawn.subplots()
        axes.stairs(heights, edges, fill=True, color=COLORS["median"])
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.minorticks_off()
        axes.set_xlabel(label)
        axes.set_ylabel("% of documents")
    return drawn


def draw(funnel: Funnel, folder: Path, title: str = "") -> list[Path]:
    """Draw ``funnel.svg`` and ``funnel.png`` into a folder. Returns: the two paths."""
    return save_figure(figure(funnel, title), folder / "funnel")
