"""Metrics files and trackers."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import torch

from bc2 import cli, recipe
from bc2.errors import Bc2Error
from bc2.pipeline.session import Session
from bc2.registry import Registry
from bc2.train.logs.log_rows import METRICS, STEP_PARTS, TIMING, read_rows
from bc2.train.logs.run_log import MetricsLog
from bc2.train.speed import run_speed
from bc2.train.speed.peak_flops import STEP, KeptPeaks, Peak, peak_key


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


def test_a_torn_line_of_an_earlier_attempt_is_cut_off(tmp_path: Path) -> None:
    """Or the next row would be part of it, and both lost."""
    path = tmp_path / TIMING
    torn = ('{"event": "step", "text": "' + "汉" * 40_000).encode()[:-1]  # inside a character
    path.write_bytes(b'{"event": "start", "step": 0}\n' + torn)
    assert [row["event"] for row in read_rows(path)] == ["start"]
    log = MetricsLog(tmp_path)
    log.time("resume", step=0)
    assert [row["event"] for row in read_rows(path)] == ["start", "resume"]
    path.write_bytes(torn)
    MetricsLog(tmp_path)
    assert path.read_bytes() == b""


def test_a_row_is_one_line_however_it_is_split(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    text = "a\x0bb\x85c\u2028d\u2029e\r\n汉\x00"
    log.row(event="sample", text=text)
    (line,) = (tmp_path / METRICS).read_text().splitlines()
    assert "汉" in line
    assert json.loads(line)["text"] == text


def test_rows_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.row(step=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / METRICS).stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        with pytest.raises(Bc2Error, match="while writing metrics") as caught:
            log.rows([{"step": 2}, {"step": 3}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.where == str(tmp_path / METRICS)
    assert list(read_rows(tmp_path / METRICS)) == [{"step": 1}]
    assert log.content() == b'{"step": 1}\n'


def test_timing_is_apart_from_results(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.time("start", step=0)
    assert not (tmp_path / METRICS).exists()
    assert json.loads((tmp_path / "timing.jsonl").read_text())["event"] == "start"


def test_a_run_writes_metrics_timing_tensorboard_and_curves(small: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sets = ["pretrain.length=6 steps", 'pretrain.track=["tensorboard"]']
    with pytest.raises(SystemExit, match="0"):
        cli.main(["pretrain", "small.toml", *(word for one in sets for word in ("--set", one))])
    registry = Registry.open()
    model = registry.newest("checkpoint")
    (folder,) = registry.runs.iterdir()
    assert (folder / METRICS).read_bytes() == model.file(METRICS).read_bytes()
    steps = [row for row in read_rows(folder / METRICS) if row["event"] == "step"]
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    seen = [scalar.value for scalar in events.Scalars("loss")]
    assert seen == pytest.approx([row["loss"] for row in steps], rel=1e-6)
    timing = [row for row in read_rows(folder / "timing.jsonl") if row["event"] == "step"]
    assert all(row["tokens_per_s"] > 0 and 0 < row["mfu"] <= 1 for row in timing)
    for row in timing:
        assert set(row["parts"]) >= {"data", "forward", "head", "backward", "optimizer"}
        assert set(row["parts"]) <= set(STEP_PARTS)
        parts = {name: value for name, value in row["parts"].items() if name != "save"}
        assert 0 < sum(parts.values()) <= row["step_s"]
    # the save after step 4 is counted to the step behind it
    assert [row["step"] for row in timing if "save" in row["parts"]] == [5]
    png, svg = folder / "loss.png", folder / "loss.svg"
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    assert drawn.rstrip().endswith("</svg>")
    for label in ("training", "held-out", "gradient norm", "learning rate"):
        assert f"<!-- {label} -->" in drawn, "matplotlib names each text in a comment"
    assert json.loads((folder / "recipe.json").read_text())["name"] == "small"


def test_steps_that_beat_the_peak_raise_it_for_this_run_and_later_ones(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(small / "cache"))
    busy = Peak(1.0, "measured at a busy moment")
    monkeypatch.setattr(run_speed, "peak_flops", lambda device, precision, kept: busy)
    registry = Registry.open()
    loaded = recipe.load("small.toml", ["pretrain.length=6 steps"])
    Session(registry).obtain("checkpoint", loaded)
    (folder,) = registry.runs.iterdir()
    rows = [row for row in read_rows(folder / "timing.jsonl") if row["event"] == "step"]
    assert all(0 < row["mfu"] <= 1 for row in rows)
    assert rows[0]["mfu"] == 1
    assert capsys.readouterr().err.count("was measured too low, and is raised") == 1
    kept = KeptPeaks.of_user().find(peak_key(torch.device("cpu"), "fp32"))
    assert kept == (max(row["flops"] for row in rows), STEP)
