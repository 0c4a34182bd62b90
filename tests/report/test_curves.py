"""What is drawn of a run, and that a long run's extremes are."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.report.curves import draw_run, inline_svg, redraw, run_figure
from bc2.report.history import CurveAxis, History
from bc2.train.logs.runs import RunFolder

LogRun = Callable[..., Path]

SKIP = {"event": "skip", "step": 12, "tokens": 6144, "samples": [88, 95], "reason": "loss is nan"}


def history_of(folder: Path) -> History:
    return History.read(RunFolder(folder))


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize(("axis", "scale"), [("tokens", 512 / 1000), ("step", 1)])
def test_every_panel_has_its_data(log_run: LogRun, axis: CurveAxis, scale: float) -> None:
    history = history_of(log_run(attempts=(0, 15), more=[SKIP]))
    drawn = run_figure(history, axis, clip_norm=0.5)
    loss, norm, rate, speed, mfu, parts = drawn.axes
    assert loss.get_ylabel() == "loss (nats per token)"
    curves = lines(loss)
    np.testing.assert_allclose(curves["training"].get_xdata(), scale * np.arange(1, 41))
    assert curves["training"].get_ydata()[0] == 8.0
    assert len(curves["training, running median"].get_xdata()) == 40
    np.testing.assert_allclose(curves["held-out"].get_xdata(), scale * np.arange(0, 41, 10))
    assert set(norm.get_lines()[0].get_ydata()) == {1.5}
    assert lines(norm)["clipped above 0.5"].get_ydata()[0] == 0.5
    assert set(rate.get_lines()[0].get_ydata()) == {1e-3}
    assert set(speed.get_lines()[0].get_ydata()) == {512.0}
    assert set(mfu.get_lines()[0].get_ydata()) == {25.0}
    names = [text.get_text() for text in parts.get_legend().get_texts()]
    assert names == ["data", "forward", "head", "backward", "optimizer"]
    assert parts.get_ylim()[1] >= 1.0


@pytest.mark.parametrize(("axis", "scale"), [("tokens", 512 / 1000), ("step", 1)])
def test_restarts_and_bad_steps_are_marked_in_every_panel(
    log_run: LogRun, axis: CurveAxis, scale: float
) -> None:
    history = history_of(log_run(attempts=(0, 15, 30), more=[SKIP]))
    drawn = run_figure(history, axis, clip_norm=0.5)
    for axes in drawn.axes:
        marks = lines(axes)
        at = np.unique(marks["restart"].get_xdata())
        np.testing.assert_allclose(at, scale * np.array([15, 30]))
        np.testing.assert_allclose(np.unique(marks["skipped"].get_xdata()), scale * 12)


def test_the_data_that_a_rollback_leaves_out_is_shaded_over_tokens(log_run: LogRun) -> None:
    rollback = {
        "event": "rollback", "step": 40, "tokens": 24_576, "samples": [320, 383],
        "from_step": 44, "reason": "loss is nan",
    }  # fmt: skip
    history = history_of(log_run(more=[rollback]))
    (span,) = run_figure(history, "tokens", clip_norm=None).axes[0].collections
    x = span.get_paths()[0].vertices[:, 0]
    assert (x.min(), x.max()) == pytest.approx((320 * 64 / 1000, 384 * 64 / 1000))


def test_an_inline_svg_names_nothing_outside_of_the_page(log_run: LogRun) -> None:
    history = history_of(log_run())
    svg = inline_svg(run_figure(history, "tokens", clip_norm=0.5), "tokens")
    assert svg.startswith("<svg")
    assert "http" not in svg
    assert "var(--heldout)" in svg
    assert "xmlns" not in svg
    named = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    ids = {node.get("id") for node in named.iter() if node.get("id")}
    used = {node.get("href", "#")[1:] for node in named.iter("use")}
    assert used
    assert used <= ids
    other = inline_svg(run_figure(history, "step", clip_norm=0.5), "step")
    assert not ids & {
        node.get("id")
        for node in ElementTree.fromstring(other.replace("xlink:href", "href")).iter()
        if node.get("id")
    }


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_shortest_runs_are_drawn(log_run: LogRun, steps: int) -> None:
    run = RunFolder(log_run(steps=steps, evals=0))
    svg, png = draw_run(run)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_text().rstrip().endswith("</svg>")


def test_curves_are_drawn_again_only_when_there_is_more(log_run: LogRun) -> None:
    import os

    run = RunFolder(log_run())
    redraw(run)
    os.utime(run.path / "loss.svg", (2e9, 2e9))
    redraw(run)
    assert (run.path / "loss.svg").stat().st_mtime == 2e9
    os.utime(run.path / "metrics.jsonl", (3e9, 3e9))
    redraw(run)
    assert (run.path / "loss.svg").stat().st_mtime != 2e9


@pytest.mark.parametrize("shares", [(0.2, 1.0), (0.9, 1.3)])
def test_what_is_drawn_above_100_percent_is_said_to_be_impossible(
    log_run: LogRun, shares: tuple[float, float]
) -> None:
    folder = log_run(steps=2)
    rows = [json.loads(row) for row in (folder / "timing.jsonl").read_text().splitlines()]
    for row, share in zip(rows[1:], shares, strict=True):
        row |= {"mfu": share, "flops": 1e9 * share}
    (folder / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mfu = run_figure(history_of(folder), "step", clip_norm=None).axes[4]
    np.testing.assert_allclose(mfu.get_lines()[0].get_ydata(), [100 * share for share in shares])
    said = "above 100% cannot be: the peak was measured too low"
    assert (said in lines(mfu)) == (max(shares) > 1)
    assert (mfu.get_legend() is not None) == (max(shares) > 1)


def test_another_algorithms_metrics_have_a_panel_for_each_unit(pair_run: LogRun) -> None:
    drawn = run_figure(history_of(pair_run()), "step", clip_norm=0.5)
    labels = [axes.get_ylabel() for axes in drawn.axes]
    assert labels == [
        "margin", "pair loss\n(nats per pair)", "KL to the\nreference\n(nats per token)",
        "chosen reward", "held-out accuracy", "gradient norm", "learning rate", "tokens/s",
        "MFU (%)", "seconds a step",
    ]  # fmt: skip
    margin, loss, _, reward, accuracy, norm, rate = drawn.axes[:7]
    assert margin.get_legend()._get_loc() == 4, "lower right: it rises"
    assert [*lines(margin)] == ["training", "training, running median"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == [
        "training", "training, running median", "held-out pair loss",
    ]  # fmt: skip
    # Only each fifth step has a reward.
    np.testing.assert_array_equal(reward.get_lines()[0].get_xdata(), range(5, 41, 5))
    assert accuracy.get_lines()[0].get_ydata()[3] == 0.8
    assert {*lines(norm)["critic"].get_ydata()} == {0.25}
    assert {*lines(norm)["model"].get_ydata()} == {1.5}
    assert {*lines(rate)["critic"].get_ydata()} == {2e-3}
    assert rate.get_ylim() == pytest.approx((0, 2.2e-3))


@pytest.mark.parametrize("steps", [0, 1])
def test_the_shortest_runs_of_another_algorithm_are_drawn(pair_run: LogRun, steps: int) -> None:
    folder = pair_run(steps, evals=0)
    labels = [
        axes.get_ylabel() for axes in run_figure(history_of(folder), "step", clip_norm=1).axes
    ]
    # The headline's panel is always there; others once they have a value.
    assert labels[:2] == ["margin", "pair loss\n(nats per pair)" if steps else "gradient norm"]
    assert draw_run(RunFolder(folder))[1].read_bytes().startswith(b"\x89PNG")
