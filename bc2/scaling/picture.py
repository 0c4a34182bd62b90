"""A law as a picture: points, curves, band, targets with their intervals, residuals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bc2.report.picture_files import save_figure
from bc2.report.plotting import COLORS, STYLE
from bc2.scaling.intervals import Interval
from bc2.scaling.law import Law
from bc2.scaling.points import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Curves of constant size that are drawn at most.
_CURVES = 7

#: Places at which a band is worked out.
_STEPS = 16


@dataclass(frozen=True)
class Target:
    """Something that a law was asked about."""

    name: str
    params: float
    tokens: float
    flops: float
    loss: Interval
    measured: float | None = None
    """What came out, if it was trained."""

    def at(self, variable: str) -> float:
        return float({"flops": self.flops, "params": self.params, "tokens": self.tokens}[variable])


def draw_law(law: Law, path: Path, targets: Sequence[Target] = ()) -> list[Path]:
    """Draw ``path``.svg and ``path``.png."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return save_figure(_figure(law, targets), path)


def _figure(law: Law, targets: Sequence[Target]) -> Figure:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.5, 7))
    drawn.set_layout_engine("constrained")
    drawn.suptitle(f"{law.fit.form.formula}, {len(law.points)} points", fontsize=11)
    top, bottom = drawn.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _losses(top, law, targets)
    _residuals(bottom, law, targets)
    bottom.set_xlabel(_label(law))
    return drawn


def _axis(law: Law) -> str:
    """The variable of the horizontal axis: compute where the form has several."""
    variables = law.fit.form.variables
    return variables[0] if len(variables) == 1 else "flops"


def _label(law: Law) -> str:
    conventions, axis = law.points.conventions, _axis(law)
    params = {"unstated": "as the table counts them"}.get(conventions.params, conventions.params)
    flops = "6ND" if conventions.flops == "6ND" else "counted with attention and head"
    return {
        "flops": f"training FLOPs C ({flops}; N: {params})",
        "params": f"parameters N ({params})",
        "tokens": "training tokens D",
    }[axis]


def _losses(axes: Axes, law: Law, targets: Sequence[Target]) -> None:
    x = getattr(law.points, _axis(law))
    several = len(law.fit.form.variables) > 1
    if several:
        _curves_of_size(axes, law)
        if law.shares_budgets:
            _frontier(axes, law, targets)
    else:
        _curve(axes, law, targets)
    colors: Any = {"color": COLORS["median"]}
    if several:
        colors = {"c": np.log10(law.points.params), "cmap": "viridis"}
    dots = axes.scatter(x, law.points.loss, s=22, zorder=3, edgecolors="white", linewidths=0.5,
                        label="runs", **colors)  # fmt: skip
    if several:
        axes.figure.colorbar(dots, ax=axes, label="log10 of parameters N", pad=0.01)
    for target in targets:
        _target(axes, target, _axis(law))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(*_limits(axes.get_ylim(), law, targets))
    _plain_ticks(axes)
    axes.set_ylabel(f"held-out loss ({law.settings.loss_unit} a token)")
    axes.legend(loc="upper right")


def _limits(drawn: tuple[float, float], law: Law, targets: Sequence[Target]) -> tuple[float, float]:
    """The ends of the loss axis: a band that nothing bounds does not flatten the points."""
    losses = [*law.points.loss, *(target.loss.value for target in targets)]
    low, high = min(losses), max(losses)
    room = (high / low) ** 0.5 * 1.1
    return max(drawn[0], low / room), min(drawn[1], high * room)


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    narrow = high / low < 4
    axes.yaxis.set_major_locator(MaxNLocator(7) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _range(law: Law, targets: Sequence[Target]) -> Floats:
    axis = _axis(law)
    column = getattr(law.points, axis)
    ends = [*(target.at(axis) for target in targets), column.min(), column.max()]
    return np.geomspace(min(ends) / 1.3, max(ends) * 1.3, _STEPS)


def _curve(axes: Axes, law: Law, targets: Sequence[Target]) -> None:
    """The law over its only variable, with its band and that of a measurement."""
    at = _range(law, targets)
    found = [law.loss_at(value, value, value) for value in at]
    lows, highs = ([getattr(both[1], end) for both in found] for end in ("low", "high"))
    axes.fill_between(at, lows, highs, color=COLORS["train"], alpha=0.25, linewidth=0,
                      label=f"{law.level:.0%} of measurements")  # fmt: skip
    lows, highs = ([getattr(both[0], end) for both in found] for end in ("low", "high"))
    axes.fill_between(at, lows, highs, color=COLORS["train"], alpha=0.5, linewidth=0,
                      label=f"{law.level:.0%} interval of the law")  # fmt: skip
    axes.plot(at, [both[0].value for both in found], color=COLORS["median"], label="law")


def _frontier(axes: Axes, law: Law, targets: Sequence[Target]) -> None:
    """The least loss for each budget, with its band."""
    at = _range(law, targets)
    best = [law.value_at(*law.best(flops), flops) for flops in at]
    axes.fill_between(at, [one.low for one in best], [one.high for one in best],
                      color=COLORS["train"], alpha=0.4, linewidth=0,
                      label=f"{law.level:.0%} interval of the least loss")  # fmt: skip
    axes.plot(at, [one.value for one in best], color=COLORS["ink"], linestyle="--", linewidth=1,
              label="least loss for the compute")  # fmt: skip


def _curves_of_size(axes: Axes, law: Law) -> None:
    """The law over compute, for some of the sizes there are."""
    from matplotlib import colormaps

    sizes = np.unique(np.round(np.log10(law.points.params), 3))
    chosen = sizes[np.unique(np.linspace(0, len(sizes) - 1, _CURVES).astype(int))]
    span = max(float(sizes[-1] - sizes[0]), 1e-9)
    simple = law.points.flops / (6 * law.points.params * law.points.tokens)
    for size in chosen:
        near = np.abs(np.log10(law.points.params) - size) < 0.15
        flops, each = law.points.flops[near], float(np.median(simple[near]))
        at = np.geomspace(flops.min() / 1.5, flops.max() * 1.5, 40)
        params = np.full(40, 10**size)
        x = law.fit.form.logs_of(params, at / each / 6 / params, at)
        color = colormaps["viridis"]((size - sizes[0]) / span)
        axes.plot(at, np.exp(law.fit.log_loss(x)), color=color, linewidth=1, alpha=0.8)
    axes.plot([], [], color=COLORS["norm"], linewidth=1, label="law, at constant N")


def _target(axes: Axes, target: Target, axis: str) -> None:
    loss, x = target.loss, target.at(axis)
    high = min(loss.high, loss.value * 10)
    error = np.array([[loss.value - loss.low], [high - loss.value]])
    axes.errorbar([x], [loss.value], yerr=error, fmt="D", color=COLORS["heldout"], markersize=5,
                  capsize=4, zorder=4, label=f"{target.name}: {loss.value:.3f}")  # fmt: skip
    if target.measured is not None:
        axes.plot([x], [target.measured], "x", color=COLORS["ink"], markersize=8, zorder=5,
                  label=f"{target.name}, measured: {target.measured:.3f}")  # fmt: skip


def _residuals(axes: Axes, law: Law, targets: Sequence[Target]) -> None:
    x = getattr(law.points, _axis(law))
    axes.axhline(0, color=COLORS["ink"], linewidth=0.8)
    axes.scatter(x, 100 * np.expm1(law.fit.errors), s=16, color=COLORS["median"], zorder=3)
    for target in targets:
        if target.measured is not None:
            miss = 100 * (target.measured / target.loss.value - 1)
            axes.plot([target.at(_axis(law))], [miss], "x", color=COLORS["heldout"], markersize=8)
    axes.set_ylabel("measured over\nlaw (%)")
