"""Which metrics share a panel, and what its axis and its curves are called."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from bc2.report.history import History
from bc2.report.metric_panels import MetricPanel, metric_panels
from bc2.report.plotting import Ruler
from bc2.train.metric import Metric, Metrics

HEAD = Metric("ce", "loss", "nats per token", better="lower", headline=True)


def history_of(*more: Metric, steps: int = 4, **values: Any) -> History:
    """Of steps that have every metric of steps, and an evaluation of every metric of those."""
    history = History(Metrics((HEAD, *more)))
    for step in range(1, steps + 1):
        for event, metrics in (
            ("step", history.metrics.of_steps),
            ("eval", history.metrics.of_evaluations),
        ):
            row = {metric.name: values.get(metric.name, float(step)) for metric in metrics}
            history.add_metrics({"event": event, "step": step, "tokens": step, **row})
    return history


def shared(history: History) -> list[list[str]]:
    return [[metric.name for metric in panel.metrics] for panel in metric_panels(history)]


def legend(panel: MetricPanel, history: History) -> list[str]:
    axes = Figure().subplots()
    panel.draw(axes, history, Ruler.of(history, "step"))
    return axes.get_legend_handles_labels()[1]


def test_metrics_of_one_unit_share_a_panel_and_plain_numbers_do_not() -> None:
    history = history_of(
        Metric("a", "accuracy"),
        Metric("b", "balance"),
        Metric("held", "held-out loss", "nats per token", of="evaluation", short="held-out"),
        Metric("kl", "KL", "nats"),
        Metric("ratio", "nats per token"),  # a name that is another's unit
    )
    assert shared(history) == [["ce", "held"], ["a"], ["b"], ["kl"], ["ratio"]]
    panels = metric_panels(history)
    assert [panel.label for panel in panels] == [
        "loss (nats per token)", "accuracy", "balance", "KL (nats)", "nats per token",
    ]  # fmt: skip
    assert [panel.height for panel in panels] == [3, 1.3, 1.3, 1.3, 1.3]
    assert legend(panels[0], history) == ["training", "held-out"]


def test_the_headline_is_first_wherever_it_is_declared() -> None:
    first = Metric("kl", "KL", "nats")
    history = History(Metrics((first, Metric("raw", "raw loss", "nats per token"), HEAD)))
    for name in ("kl", "raw"):
        history.add_metrics({"event": "step", "step": 1, "tokens": 1, name: 1.0})
    assert shared(history) == [["ce", "raw"], ["kl"]]


@pytest.mark.parametrize(
    ("shown", "value", "drawn"),
    [("curve", 1.0, True), ("figure", 1.0, False), ("log", 1.0, False), ("curve", "nan", False)],
)
def test_what_is_not_to_be_drawn_or_has_no_value_has_no_panel(
    shown: Any, value: Any, drawn: bool
) -> None:
    history = history_of(Metric("kl", "KL", "nats", shown=shown), kl=value)
    assert (["kl"] in shared(history)) == drawn


def test_several_metrics_of_steps_are_told_apart_by_their_names() -> None:
    more = [
        Metric("aux", "auxiliary loss", "nats", short="aux"), Metric("z", "z loss", "nats"),
        Metric("held", "held-out z loss", "nats", of="evaluation"),
    ]  # fmt: skip
    history = history_of(*more, steps=30)
    panel = metric_panels(history)[1]
    assert (panel.label, panel.height) == ("nats", 2)
    assert legend(panel, history) == ["aux", "aux, running median", "z loss", "held-out z loss"]
