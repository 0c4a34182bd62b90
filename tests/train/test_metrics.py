"""Metrics files and trackers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2 import recipe, stages
from bc2.errors import UsageError
from bc2.registry import Registry
from bc2.train.metrics import METRICS, MetricsLog, check_trackers, read_rows


def test_rows_are_visible_at_once_and_nan_is_text(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.row(event="skip", step=1, loss=float("nan"))
    log.row(event="step", step=2, loss=0.1 + 0.2)
    rows = list(read_rows(tmp_path / METRICS))
    assert rows == [
        {"event": "skip", "step": 1, "loss": "nan"},
        {"event": "step", "step": 2, "loss": 0.30000000000000004},
    ]


def test_reset_goes_back_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.row(step=1)
    kept = log.content()
    log.row(step=2)
    log.reset(kept)
    with (tmp_path / METRICS).open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert list(read_rows(tmp_path / METRICS)) == [{"step": 1}]


def test_timing_is_apart_from_results(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.time("start", step=0)
    assert not (tmp_path / METRICS).exists()
    assert json.loads((tmp_path / "timing.jsonl").read_text())["event"] == "start"


def test_a_missing_tracker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_trackers(["wandb"])
    assert "bc2[track]" in str(caught.value)


def test_a_run_writes_metrics_timing_tensorboard_and_curves(small: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loaded = recipe.load(
        "small.toml", ["pretrain.length=6 steps", 'pretrain.track=["tensorboard"]']
    )
    registry = Registry.open()
    model = stages.base_model(stages.Session(registry), loaded, ["bc2"])
    (folder,) = registry.runs.iterdir()
    assert (folder / METRICS).read_bytes() == model.file(METRICS).read_bytes()
    steps = [row for row in read_rows(folder / METRICS) if row["event"] == "step"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    seen = [scalar.value for scalar in events.Scalars("loss")]
    assert seen == pytest.approx([row["loss"] for row in steps], rel=1e-6)
    timing = [row for row in read_rows(folder / "timing.jsonl") if row["event"] == "step"]
    assert all(row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1.5 for row in timing)
    png, svg = folder / "loss.png", folder / "loss.svg"
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    assert drawn.rstrip().endswith("</svg>")
    for label in ("training", "held-out", "gradient norm", "learning rate"):
        assert f"<!-- {label} -->" in drawn, "matplotlib names each text in a comment"
    assert json.loads((folder / "recipe.json").read_text())["name"] == "small"
