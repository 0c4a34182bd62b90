"""What is declared of metrics survives a file, and what is no declaration is refused."""

from __future__ import annotations

import json

import pytest

from bc2.train.metric import Metric, Metrics, column_of_model

HEAD = Metric("margin", "margin", "nats", over="pairs", better="higher", headline=True)
HELD = Metric("accuracy", "accuracy", of="evaluation", short="acc", shown="figure")


def test_metrics_of_a_file_are_those_that_were_written_to_it() -> None:
    metrics = Metrics((HEAD, HELD))
    rows = json.loads(json.dumps(metrics.as_json()))
    assert Metrics.from_json(rows) == metrics
    # A newer version may say more of them.
    assert Metrics.from_json([{**row, "colour": "red"} for row in rows]) == metrics
    # And an earlier one less: it did not say where they are seen.
    earlier = [{name: row[name] for name in row if name != "shown"} for row in rows]
    assert [one.shown for one in Metrics.from_json(earlier).all] == ["curve", "curve"]


@pytest.mark.parametrize("rows", [None, 7, "ab", ["a"], [{}], [{"name": "a", "label": None}]])
def test_what_is_no_list_of_metrics_is_refused(rows: object) -> None:
    with pytest.raises(ValueError, match="metric"):
        Metrics.from_json(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["step", "event", "samples", "lr", "critic.lr", "a.b.clipped"])
def test_a_metric_takes_no_column_that_the_loop_writes(name: str) -> None:
    with pytest.raises(ValueError, match="taken"):
        Metric(name, "anything")


def test_columns_of_trained_models() -> None:
    columns = ("grad_norm", "critic.lr", "a.b.clipped", "loss", "critic.loss", "lr_scale")
    assert [column_of_model(column) for column in columns] == [
        ("", "grad_norm"), ("critic", "lr"), ("a.b", "clipped"), None, None, None,
    ]  # fmt: skip
