"""The panels of what a run measures: one for each unit, the headline's first.

Metrics of one unit share a panel, so that a loss of training and a held-out one can be compared;
a plain number has a panel of its own, because nothing says that two of them have one scale.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bc2.report.history import History
from bc2.report.plotting import COLORS, PART_COLORS, Ruler, curve, running_median
from bc2.train.metric import Metric
from bc2.train.speed.mfu import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Fewest values that have a running median.
_MEDIAN_OF = 20


@dataclass(frozen=True)
class MetricPanel:
    """Metrics that share a vertical axis."""

    metrics: tuple[Metric, ...]
    headline: bool

    @property
    def height(self) -> float:
        """Relative to the other panels of a picture."""
        if self.headline:
            return 3
        return 2 if len(self.metrics) > 2 else 1.3

    @property
    def rises(self) -> bool:
        """Whether its curves are to rise, and so end at the top."""
        return self.metrics[0].better == "higher"

    @property
    def label(self) -> str:
        """What the axis says: the metric's label where there is one of training, and the unit."""
        first = self.metrics[0]
        one = self.headline or len(self.metrics) == 1 or len(self._of("step")) == 1
        if not one:
            return first.unit
        unit = f"({first.unit})" if first.unit else ""
        text = f"{first.label} {unit}".rstrip()
        if len(text) <= (width := 34 if self.headline else 18):
            return text
        lines = textwrap.wrap(first.label, width) + textwrap.wrap(unit, width)
        return "\n".join(lines)

    def draw(self, axes: Axes, history: History, ruler: Ruler) -> None:
        """Draw every metric that was logged, and a legend where there are several curves."""
        steps, evaluations = self._of("step"), self._of("evaluation")
        for number, metric in enumerate(steps):
            name = metric.brief if len(steps) > 1 else "training"
            _draw_steps(axes, history, ruler, metric, name, number)
        # From the end, so that they differ from those of steps.
        colors = (COLORS["heldout"], *reversed(PART_COLORS))
        for number, metric in enumerate(evaluations):
            x, y = _values(history, ruler, metric)
            color = colors[number % len(colors)]
            curve(axes, x, y, color, metric.brief, linewidth=1.4)
        axes.set_ylabel(self.label)
        if not self.headline and len(self.metrics) > 1:
            axes.legend(loc="best")

    def _of(self, of: str) -> list[Metric]:
        return [metric for metric in self.metrics if metric.of == of]


def metric_panels(history: History) -> list[MetricPanel]:
    """The panels of the metrics that are drawn: the headline's, then those that have a value."""
    head = history.metrics.headline
    panels: dict[str, list[Metric]] = {_axis(head): [head]}
    for metric in history.metrics.all:
        drawn = metric.shown == "curve" and np.isfinite(_column(history, metric)).any()
        if drawn and metric != head:
            panels.setdefault(_axis(metric), []).append(metric)
    return [MetricPanel(_steps_first(one), head in one) for one in panels.values()]


def _steps_first(metrics: list[Metric]) -> tuple[Metric, ...]:
    return tuple(sorted(metrics, key=lambda metric: metric.of == "evaluation"))


def _axis(metric: Metric) -> str:
    """What metrics of one axis have in common: a unit is no name, so the two do not meet."""
    return f"unit {metric.unit}" if metric.unit else f"metric {metric.name}"


def _column(history: History, metric: Metric) -> Floats:
    return history.columns_of(metric)[metric.name]


def _values(history: History, ruler: Ruler, metric: Metric) -> tuple[Floats, Floats]:
    columns = history.columns_of(metric)
    return ruler.of_columns(columns), columns[metric.name]


def _draw_steps(
    axes: Axes, history: History, ruler: Ruler, metric: Metric, name: str, number: int
) -> None:
    """The values of steps, and their running median over them; the first in two colours."""
    x, y = _values(history, ruler, metric)
    color = PART_COLORS[number % len(PART_COLORS)]
    light, dark = (color, color) if number else (COLORS["train"], COLORS["median"])
    finite = np.isfinite(y)
    smooth = finite.sum() >= _MEDIAN_OF
    if smooth and number:
        # Underscored labels are not in a legend: the median's is.
        curve(axes, x, y, light, f"_{name}", linewidth=0.6, alpha=0.35)
    else:
        curve(axes, x, y, light, name, linewidth=0.8)
    if smooth:
        at, median = running_median(y[finite])
        label = name if number else f"{name}, running median"
        axes.plot(x[finite][at], median, color=dark, linewidth=1.6, label=label)
