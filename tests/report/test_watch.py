"""The state of a run, and how it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError
from bc2.registry import Draft, Position, Registry
from bc2.report.number_format import amount, duration, figure
from bc2.report.status import Status
from bc2.report.watch import sparkline, status_line, status_rows, watch
from bc2.train.logs.runs import RunFolder, mark_running
from bc2.train.metric import Metric, Metrics

LogRun = Callable[..., Path]

KEY = "0123456789ab" + 52 * "c"


def status_of(folder: Path) -> Status:
    status = Status(RunFolder(folder), Registry.open())
    status.update()
    return status


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"event": "finish"}, "finished"),
        ({"event": "stop", "signal": 2}, "stopped (SIGINT)"),
        ({"event": "fail", "what": "no space"}, "failed (no space)"),
        (None, "died (killed, or crashed)"),
    ],
)
def test_states(log_run: LogRun, end: dict[str, Any] | None, state: str) -> None:
    folder = log_run(steps=20, end=end)
    assert str(status_of(folder).state) == state
    with mark_running(folder):
        assert str(status_of(folder).state) == "running"


def test_killed_after_its_checkpoint_was_published_is_finished(log_run: LogRun) -> None:
    folder = log_run()
    assert status_of(folder).state.name == "died"
    registry = Registry.open()
    with registry.stage(Draft("checkpoint", "made", KEY, position=Position(40, 20480))) as staged:
        (staged.path / "data.bin").write_bytes(b"x")
        staged.publish()
    assert status_of(folder).state.name == "finished"
    # --fresh: the same run is made again, and died on its way.
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:20]))
    assert status_of(folder).state.name == "died"


def test_ended_by_a_bad_step_without_a_word_of_it_in_the_timing(log_run: LogRun) -> None:
    stop = {"event": "stop", "step": 20, "tokens": 1, "samples": [1, 2], "reason": "loss is nan"}
    assert str(status_of(log_run(steps=20, more=[stop])).state) == "failed (loss is nan)"


def test_the_values_of_a_running_run(log_run: LogRun) -> None:
    folder = log_run(steps=20, attempts=(0, 5))
    with mark_running(folder):
        now = status_of(folder).as_json()
    assert (now["step"], now["steps"]) == (20, 40)
    assert (now["tokens"], now["tokens_total"]) == (20 * 512, 40 * 512)
    assert now["loss"] == 4.2
    assert (now["heldout_loss"], now["best_heldout_loss"]) == (7.0, 7.0)
    assert (now["grad_norm"], now["clip_norm"], now["clipped_share"]) == (1.5, 0.5, 0.5)
    assert (now["learning_rate"], now["tokens_per_s"], now["mfu"]) == (1e-3, 512.0, 0.25)
    assert now["data_share"] == pytest.approx(0.1)
    assert now["restarts"] == 1
    # Twenty steps more, each two seconds by the monotonic clock and one by its own.
    assert now["seconds_left"] == pytest.approx(40.0)
    json.dumps(now, allow_nan=False)


def test_no_time_is_left_when_nothing_runs(log_run: LogRun) -> None:
    assert status_of(log_run(steps=20)).as_json()["seconds_left"] is None


def test_only_what_is_new_is_read(log_run: LogRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = log_run(steps=20)
    status = status_of(folder)
    seen: list[dict[str, Any]] = []
    row = {"event": "step", "step": 21, "tokens": 21 * 512, "ce": 1.0, "clipped": False}
    append(folder / "metrics.jsonl", row)
    status.update(on_metrics=seen.append)
    assert seen == [row]
    assert (status.step, status.headline[-1]) == (21, 1.0)


def test_a_resume_takes_the_history_back(log_run: LogRun) -> None:
    folder = log_run(steps=20)
    status = status_of(folder)
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:11]
    (folder / "aside").write_text("".join(kept))
    (folder / "aside").rename(folder / "metrics.jsonl")
    status.update()
    assert status.step == 10
    assert len(status.headline) == 10


def test_a_rollback_reads_more_tokens_and_forgets_the_pace(log_run: LogRun) -> None:
    folder = log_run(steps=20)
    bad = {"event": "bad", "time": 0.0, "elapsed": 50.0, "step": 21, "samples": [160, 167]}
    row = {"event": "step", "time": 0.0, "elapsed": 60.0, "step": 11, "step_s": 3.0}
    append(folder / "timing.jsonl", {**bad, "reason": "loss is nan"}, row)
    rollback = {"event": "rollback", "step": 10, "tokens": 168 * 64, "samples": [80, 167]}
    append(folder / "metrics.jsonl", {**rollback, "reason": "loss is nan"})
    with mark_running(folder):
        status = status_of(folder)
        now = status.as_json()
    assert now["tokens_total"] == 168 * 64 + 30 * 512
    assert now["seconds_left"] == pytest.approx(30 * 3.0)
    assert now["bad_steps"] == 1
    assert (
        "1  (the last: step 21, samples 160 to 167: loss is nan)"
        in dict(status_rows(status)).values()
    )


def test_a_run_of_which_nothing_is_known_yet(log_run: LogRun) -> None:
    folder = log_run(steps=0, evals=0, facts=False)
    status = status_of(folder)
    assert dict(status_rows(status))["loss"] == "-"
    assert "step 0" in status_line(status)
    json.dumps(status.as_json(), allow_nan=False)


def test_a_loss_that_is_not_a_number_does_not_hide_the_others(log_run: LogRun) -> None:
    folder = log_run(steps=20)
    append(
        folder / "metrics.jsonl",
        {"event": "eval", "step": 20, "tokens": 1, "heldout_loss": "nan", "bits_per_byte": "nan"},
    )
    status = status_of(folder)
    assert status.as_json()["best_heldout_loss"] == 7.0
    assert dict(status_rows(status))["held-out loss"].startswith("nan  (best 7.0000)")


def test_watching_a_run_that_is_not_running_ends_at_once(
    log_run: LogRun, capsys: pytest.CaptureFixture[str]
) -> None:
    status = Status(RunFolder(log_run()), Registry.open())
    watch(status, interval_s=100.0)
    assert status.step == 40
    assert capsys.readouterr().err == ""


def test_a_sparkline_falls_with_the_loss() -> None:
    assert sparkline([]) == sparkline([1.0]) == ""
    assert sparkline([8.0, float("nan"), 4.5, 1.0]) == "█▅▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert len(sparkline(range(1000))) == 40


def test_numbers_as_people_read_them() -> None:
    assert [amount(n) for n in (None, 999, 12_345, 2.6e12)] == ["-", "999", "12,345", "2.60T"]
    assert [duration(s) for s in (None, 5, 3661, 200_000)] == [
        "-", "5.0 s", "01:01:01", "2 d 07:33:20",
    ]  # fmt: skip


def test_looking_at_a_run_does_not_import_torch() -> None:
    script = "import sys, bc2.report.watch, bc2.report.page; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True)


def with_flops(folder: Path, *rows: tuple[float, float]) -> Status:
    """Of a run whose last steps logged these FLOP/s and MFU."""
    (folder / "timing.jsonl").write_text("")
    begun = {"event": "start", "time": 0.0, "elapsed": 0.0, "step": 0}
    steps = [
        {**begun, "event": "step", "step": at, "tokens_per_s": 9.0, "flops": f, "mfu": mfu}
        for at, (f, mfu) in enumerate(rows, 1)
    ]
    append(folder / "timing.jsonl", begun, *steps)
    return status_of(folder)


def test_recent_mfu_is_over_the_highest_peak(log_run: LogRun) -> None:
    status = with_flops(log_run(steps=3), (2.0, 0.5), (5.0, 1.0), (4.0, 0.8))
    now = status.as_json()
    assert now["mfu"] == pytest.approx(0.8)
    assert now["mfu_note"] is None
    assert status_line(status).endswith("MFU 80%")


def test_an_mfu_above_100_percent_is_not_shown_without_words(log_run: LogRun) -> None:
    status = with_flops(log_run(steps=3), (2.2, 1.1), (2.4, 1.2), (2.6, 1.3))
    said = "cannot be: the peak was measured too low"
    assert status.as_json()["mfu_note"] == said
    assert status_line(status).endswith(f"MFU 120% ({said})")
    assert dict(status_rows(status))["tokens/s"] == f"9  MFU 120.0% ({said})"


def test_another_algorithm_is_told_by_what_it_declares(pair_run: LogRun) -> None:
    status = status_of(pair_run())
    line = status_line(status)
    assert "  margin 1.4000  accuracy 0.7500  |g| 1.50  critic |g| 0.25  lr 1.00e-03  " in line
    bars = "▁▁▁▂▂▂▂▂▂▃▃▃▃▃▄▄▄▄▄▄▅▅▅▅▅▅▆▆▆▆▆▇▇▇▇▇▇███"
    assert status_rows(status)[4:11] == [
        ("margin", f"1.4000  {bars}"),
        (
            "other metrics",
            "0.3000 pair loss  4.000e-05 KL  1.0000 chosen reward  17.5000 answer length",
        ),
        ("held-out accuracy", "0.7500  (best 0.8000)  0.3750 held-out pair loss"),
        ("gradient norm", "1.500  (50% of recent steps clipped to 0.5)"),
        ("learning rate", "1.00e-03"),
        ("critic gradient norm", "0.250  (0% of recent steps clipped)"),
        ("critic learning rate", "2.00e-03"),
    ]


def test_the_json_of_another_algorithm(pair_run: LogRun) -> None:
    now = status_of(pair_run()).as_json()
    json.dumps(now, allow_nan=False)
    values = {name: found["value"] for name, found in now["metrics"].items()}
    assert values == {
        "margin": pytest.approx(1.4), "loss": pytest.approx(0.3), "kl": pytest.approx(4e-5),
        "reward": 1.0, "length": 17.5, "accuracy": 0.75, "pair_loss": 0.375,
    }  # fmt: skip
    assert now["metrics"]["accuracy"] == {
        "value": 0.75, "best": 0.8, "label": "held-out accuracy", "unit": "", "of": "evaluation",
        "over": "pairs", "better": "higher", "headline": True,
    }  # fmt: skip
    assert now["metrics"]["pair_loss"]["best"] == 0.35
    assert "best" not in now["metrics"]["margin"]
    # What pretraining measures; the pairs' "loss" is another one.
    for key in ("loss", "heldout_loss", "best_heldout_loss", "bits_per_byte"):
        assert now[key] is None
    critic = {"grad_norm": 0.25, "clipped_share": 0.0, "learning_rate": 2e-3}
    assert now["other_models"] == {"critic": critic}
    assert now["step_tokens"] == 420.5


def test_a_pretraining_run_is_told_as_before_there_were_others(log_run: LogRun) -> None:
    """Word for word, also of bc2 0.1, whose run.json said nothing of metrics."""
    folder = log_run(steps=20)
    facts = json.loads((folder / "run.json").read_text())
    earlier = {name: value for name, value in facts.items() if name != "metrics"}
    for written in (facts, earlier):
        (folder / "run.json").write_text(json.dumps(written))
        status = status_of(folder)
        assert "  loss 4.2000  held-out 7.0000  |g| 1.50  lr 1.00e-03  " in status_line(status)
        assert [label for label, _ in status_rows(status)] == [
            "run", "state", "step", "tokens", "loss", "held-out loss", "gradient norm",
            "learning rate", "tokens/s", "waiting", "time", "restarts", "bad steps",
        ]  # fmt: skip
        rows = dict(status_rows(status))
        assert rows["held-out loss"] == "7.0000  (best 7.0000)  3.5000 bits/byte"
        now = status.as_json()
        assert (now["loss"], now["heldout_loss"], now["bits_per_byte"]) == (4.2, 7.0, 3.5)
        assert now["metrics"]["heldout_loss"]["best"] == now["best_heldout_loss"] == 7.0
        assert (now["other_models"], now["step_tokens"]) == ({}, None)


def test_an_algorithm_without_evaluations_has_no_row_of_them(pair_run: LogRun) -> None:
    few = Metrics((Metric("margin", "margin", headline=True),))
    status = status_of(pair_run(metrics=few))
    assert "margin 1.4000  |g|" in status_line(status)
    assert [label for label, _ in status_rows(status)][4:6] == ["margin", "gradient norm"]


def test_many_metrics_take_several_rows(pair_run: LogRun) -> None:
    more = [Metric(f"m{number}", f"metric {number}") for number in range(5)]
    status = status_of(pair_run(metrics=Metrics((Metric("margin", "m", headline=True), *more))))
    assert status_rows(status)[5:7] == [
        ("other metrics", "- metric 0  - metric 1  - metric 2  - metric 3"),
        ("", "- metric 4"),
    ]


def test_metrics_that_are_declared_only_later_are_read_from_the_beginning(
    pair_run: LogRun,
) -> None:
    """A run whose folder was looked at before its run.json was there."""
    folder = pair_run()
    (folder / "run.json").rename(folder / "aside")
    status = status_of(folder)
    assert dict(status_rows(status))["loss"] == "-"
    (folder / "aside").rename(folder / "run.json")
    status.update()
    assert status.as_json()["metrics"]["accuracy"]["best"] == 0.8
    assert len(status.headline) == 40


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ("loss", "not a list of metrics"),
        (None, "not a list of metrics"),
        ([], "one metric of the steps is the headline"),
        ([{"label": "loss"}], "missing 1 required positional argument: 'name'"),
        ([{"name": "a", "label": 7, "headline": True}], "needs a name and a label"),
        ([{"name": "a", "label": "a", "headline": 1}], "whether a is the headline"),
        ([{"name": "a", "label": "a", "of": "run"}], "a is of 'run'"),
        ([{"name": "a", "label": "a", "better": "up"}], "a is better 'up'"),
        ([{"name": "a", "label": "a", "shown": []}], "a is shown as []"),
        ([{"name": "lr", "label": "a"}], "the column lr is taken"),
        ([{"name": "critic.grad_norm", "label": "a"}], "the column critic.grad_norm is taken"),
    ],
)
def test_metrics_that_are_none_are_named_with_their_file(
    pair_run: LogRun, metrics: Any, told: str
) -> None:
    folder = pair_run()
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "metrics": metrics}))
    with pytest.raises(DataError) as caught:
        status_of(folder)
    assert told in caught.value.what
    assert caught.value.where == str(folder / "run.json")


def test_figures_of_any_size() -> None:
    values = (0.25, 0, -0.00004, 1e-7, 2.5e6, "nan", None)
    assert [figure(value) for value in values] == [
        "0.2500", "0.0000", "-4.000e-05", "1.000e-07", "2.500e+06", "nan", "-",
    ]  # fmt: skip


def test_warnings_are_those_of_the_last_evaluation(log_run: LogRun) -> None:
    def warned(step: int, code: str) -> dict[str, Any]:
        return {"event": "warning", "step": step, "tokens": 512 * step, "code": code, "text": "so"}

    rows = [warned(10, "early"), warned(20, "both-fall"), warned(20, "longer-answers")]
    folder = log_run(steps=25, more=rows)
    status = status_of(folder)
    shown = [value for label, value in status_rows(status) if label == "warning"]
    assert shown == ["both-fall: so", "longer-answers: so"]
    assert status_line(status).endswith("both-fall  longer-answers")
    assert status.as_json()["warnings"][0] == {"code": "both-fall", "text": "so"}
    evaluation = {"event": "eval", "step": 30, "tokens": 15_360, "heldout_loss": 3.0}
    append(folder / "metrics.jsonl", evaluation)
    status.update()
    assert status.as_json()["warnings"] == []
    assert "warning" not in dict(status_rows(status))
