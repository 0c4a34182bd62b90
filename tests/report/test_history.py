"""The rows of a run as columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.report.history import Columns, History
from bc2.train.logs.runs import RunFolder
from bc2.train.pretrain.pretrain_metrics import PRETRAIN_METRICS

LogRun = Callable[..., Path]


def step(at: int, tokens_per_s: float, **parts: float) -> dict[str, Any]:
    return {
        "event": "step", "time": 0.0, "elapsed": float(at), "step": at, "step_s": 1.0,
        "tokens_per_s": tokens_per_s, "mfu": 0.5, "parts": parts,
    }  # fmt: skip


def test_columns_widen_with_gaps() -> None:
    columns = Columns()
    columns.widen({})
    columns.widen({"a": 1})
    columns.widen({"b": "nan"})
    assert columns.names() == ["a", "b"]
    np.testing.assert_array_equal(columns["a"], [1, np.nan])
    np.testing.assert_array_equal(columns["b"], [np.nan, np.nan])


def test_a_step_made_twice_counts_by_its_last_time(log_run: LogRun) -> None:
    folder = log_run(steps=4)
    rows = [
        {"event": "start", "time": 0.0, "step": 0},
        *(step(at, 100.0) for at in (1, 2, 3, 4, 5)),
        {"event": "resume", "time": 0.0, "step": 2},
        *(step(at, 200.0) for at in (3, 4)),
    ]
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = History.read(RunFolder(folder)).times()
    # Step 5 was gone back over and is not made again yet.
    assert times["step"].tolist() == [1, 2, 3, 4]
    assert times["tokens_per_s"].tolist() == [100, 100, 200, 200]
    assert times["tokens"].tolist() == [512, 1024, 1536, 2048]


def test_parts_that_add_up_over_several_steps_are_told_per_step() -> None:
    history = History(PRETRAIN_METRICS)
    history.add_timing({"event": "resume", "time": 0.0, "step": 10})
    history.add_timing(step(15, 1.0, forward=5.0))
    history.add_timing(step(20, 1.0, forward=10.0, save=1.0))
    for at in (15, 20):
        history.add_metrics({"event": "step", "step": at, "tokens": at * 10})
    times = history.times()
    assert times["parts.forward"].tolist() == [1.0, 2.0]
    np.testing.assert_array_equal(times["parts.save"], [np.nan, 0.2])


def test_restarts_are_placed_by_step_and_by_tokens(log_run: LogRun) -> None:
    history = History.read(RunFolder(log_run(attempts=(0, 10, 30))))
    assert history.restarts("step").tolist() == [10, 30]
    assert history.restarts("tokens").tolist() == [5120, 15360]


def test_tokens_go_on_where_a_rollback_takes_the_step_back(log_run: LogRun) -> None:
    """metrics.jsonl after a rollback from step 8 to step 4: steps 5 to 8 read other data."""
    history = History(PRETRAIN_METRICS)
    for at in range(1, 5):
        history.add_metrics({"event": "step", "step": at, "tokens": 512 * at})
    rollback = {"event": "rollback", "step": 4, "tokens": 4096, "samples": [32, 63]}
    history.add_metrics({**rollback, "from_step": 8, "reason": "loss is nan"})
    history.add_metrics({"event": "step", "step": 5, "tokens": 4608})
    assert history.steps["step"].tolist() == [1, 2, 3, 4, 5]
    assert history.steps["tokens"].tolist() == [512, 1024, 1536, 2048, 4608]
    assert history.bad[0]["from_step"] == 8


@pytest.mark.parametrize("again", ["resume", "start"])
def test_a_bad_step_met_again_is_one(again: str) -> None:
    history = History(PRETRAIN_METRICS)
    bad = {"event": "bad", "time": 0.0, "step": 3, "samples": [16, 23], "reason": "loss is nan"}
    first = {"event": "start", "time": 0.0, "step": 0}
    for row in (first, bad, {**bad, "step": 9}, {**first, "event": again}, bad):
        history.add_timing(row)
    # A new start knows nothing of what was met before it.
    assert [row["step"] for row in history.met.values()] == ([3, 9] if again == "resume" else [3])


def test_mfu_is_over_the_highest_peak_of_each_attempt() -> None:
    history = History(PRETRAIN_METRICS)
    history.add_timing({"event": "start", "time": 0.0, "step": 0})
    # The peak was 4, until the second step reached 5; then another machine, or an old log.
    logged = {1: (2.0, 0.5), 2: (5.0, 1.0), 3: (4.0, 0.8), 4: (6.0, 1.2), 5: (3.0, 0.6)}
    for at, (flops, mfu) in logged.items():
        if at == 4:
            history.add_timing({"event": "resume", "time": 0.0, "step": 3})
        history.add_metrics({"event": "step", "step": at, "tokens": at})
        history.add_timing({**step(at, 1.0), "flops": flops, "mfu": mfu})
    np.testing.assert_allclose(history.times()["mfu"], [0.4, 1.0, 0.8, 1.2, 0.6])
