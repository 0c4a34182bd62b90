"""How well a model orders held-out pairs, as pictures and a table of a run's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bc2.align.pairs.preference_rows import COLUMNS, PREFERENCE, accuracy_rows
from bc2.report.curves import inline_svg
from bc2.report.number_format import figure
from bc2.report.plotting import COLORS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Found = Mapping[str, Any]


def preference_section(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template draws; None: the checkpoint says nothing of pairs.

    Args:
        facts: of a checkpoint; its ``preference`` is what `preference_tables` gives.
    """
    from markupsafe import Markup

    found = facts.get(PREFERENCE)
    if found is None:
        return None
    what = "score" if "score_centre" in facts else "reward"
    # The only unescaped part: bc2 makes it, from numbers alone.
    pictures = [(title, Markup(svg)) for title, svg in _pictures(found, what)]
    return {
        "columns": COLUMNS,
        "rows": list(accuracy_rows(found)),
        "what": what,
        "pictures": pictures,
        "lines": list(_lines(found, what)),
    }


def _lines(found: Found, what: str) -> Sequence[str]:
    lines = [
        f"ranking loss {figure(found['loss'])} nats, {found['ties']:,} pairs of one {what} "
        "(they count half)",
        f"margin: mean {figure(found['margins']['mean'])}, sd {figure(found['margins']['sd'])}",
        f"calibration error {100 * found['calibration']['error']:.1f} points",
    ]
    rank = found["over_length"]["spearman"]
    if rank is not None:
        lines.append(f"rank correlation of {what} and length {rank:+.2f}")
    lines += [
        f"with the scores of {row['source']} ({row['answers']:,} answers): "
        f"r {row['pearson']:+.2f}, rank correlation {row['spearman']:+.2f}"
        for row in found["data_scores"]
        if row["spearman"] is not None
    ]
    return lines


def _pictures(found: Found, what: str) -> list[tuple[str, str]]:
    """Titles, and each picture as an element of a page."""
    panels: dict[str, tuple[str, Callable[[Axes], None]]] = {}
    if found["by_gap"]:
        panels["gap"] = ("By gap of the data's scores", lambda axes: _by_gap(axes, found))
    panels["calibration"] = ("Calibration", lambda axes: _calibration(axes, found))
    if len(found["over_length"]["bins"]) > 1:
        over = (f"{what.title()} over length", lambda axes: _over_length(axes, found, what))
        panels["length"] = over
    panels["margins"] = ("Margins", lambda axes: _margins(axes, found, what))
    return [
        (title, inline_svg(_figure(draw), f"preference-{name}"))
        for name, (title, draw) in panels.items()
    ]


def _figure(draw: Callable[[Axes], None]) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(4.6, 2.9))
        drawn.set_layout_engine("constrained")
        draw(drawn.subplots())
    return drawn


def _by_gap(axes: Axes, found: Found) -> None:
    """Accuracy and the length rule side by side in each fifth."""
    rows = [(at, row) for at, row in enumerate(found["by_gap"]) if row["pairs"]]
    _with_bounds(
        axes, [at - 0.08 for at, _ in rows], [row["accuracy"] for _, row in rows],
        [row["interval"] for _, row in rows], "median", "model",
    )  # fmt: skip
    _with_bounds(
        axes, [at + 0.08 for at, _ in rows], [row["longer_wins"] for _, row in rows],
        [row["longer_interval"] for _, row in rows], "bad", "longer wins",
    )  # fmt: skip
    _half(axes)
    names = [f"{100 * row['low']:.0f}-{100 * row['high']:.0f}%" for row in found["by_gap"]]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("gap, of the range of the scores")
    axes.set_ylabel("pairs in order (%)")
    axes.legend(loc="best")


def _calibration(axes: Axes, found: Found) -> None:
    bins = found["calibration"]["bins"]
    axes.plot([50, 100], [50, 100], color=COLORS["limit"], linewidth=1, linestyle="--")
    _with_bounds(
        axes, [100 * one["predicted"] for one in bins], [one["observed"] for one in bins],
        [one["interval"] for one in bins], "median",
    )  # fmt: skip
    axes.set_xlabel("predicted that the higher one is better (%)")
    axes.set_ylabel("so observed (%)")


def _with_bounds(
    axes: Axes, x: Sequence[float], shares: Sequence[float],
    intervals: Sequence[Sequence[float] | None], color: str, label: str = "",
) -> None:  # fmt: skip
    """Points in percent with their intervals, where they have one."""
    axes.plot(
        x, [100 * share for share in shares], color=COLORS[color], label=label,
        marker="o", markersize=4, linewidth=1.2,
    )  # fmt: skip
    for at, bounds in zip(x, intervals, strict=True):
        if bounds is not None:
            low, high = bounds
            axes.vlines(at, 100 * low, 100 * high, color=COLORS[color], linewidth=1.2)


def _half(axes: Axes) -> None:
    axes.axhline(50, color=COLORS["limit"], linewidth=1, linestyle="--")


def _over_length(axes: Axes, found: Found, what: str) -> None:
    bins = found["over_length"]["bins"]
    x = [one["middle"] for one in bins]
    low, middle, high = zip(*(one["quartiles"] for one in bins), strict=True)
    axes.fill_between(x, low, high, color=COLORS["train"], alpha=0.45, label="middle half")
    axes.plot(x, middle, color=COLORS["median"], marker="o", markersize=4, label="median")
    axes.plot(x, [one["mean"] for one in bins], color=COLORS["heldout"], label="mean")
    axes.set_xlabel("tokens of the answer")
    axes.set_ylabel(what)
    axes.legend(loc="best")


def _margins(axes: Axes, found: Found, what: str) -> None:
    margins = found["margins"]
    axes.stairs(margins["pairs"], margins["edges"], fill=True, color=COLORS["train"])
    axes.axvline(0, color=COLORS["limit"], linewidth=1, linestyle="--")
    axes.axvline(margins["mean"], color=COLORS["median"], linewidth=1.2, label="mean")
    axes.set_xlabel(f"{what} of chosen above rejected")
    axes.set_ylabel("pairs")
    axes.legend(loc="best")
