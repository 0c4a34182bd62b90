"""Trackers of a run that is killed, goes back, or whose tracker fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import warmed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bc2.errors import UsageError
from bc2.registry import Registry
from bc2.train.logs.log_rows import METRICS, read_rows
from bc2.train.logs.run_log import MetricsLog
from bc2.train.logs.trackers import TensorBoard, Trackers, WandB, check_trackers, scalars

COMMAND = [
    sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", "--quiet",
    "--set", 'pretrain.track=["tensorboard"]', "--set", "pretrain.length=60 steps",
    "--set", "pretrain.checkpoint_every=20 steps", "--set", "pretrain.sample_prompts=0",
]  # fmt: skip


def test_a_missing_tracker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        check_trackers(["wandb"])
    assert "bc2[track]" in str(caught.value)


def launch(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "BC2_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return warmed.Popen(
        COMMAND, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run_folder(folder: Path) -> Path | None:
    return next((folder / "home" / "runs").glob("small-*"), None)


def kill_at(folder: Path, step: int) -> None:
    """Train until a step is logged, and kill by SIGKILL."""
    process = launch(folder)
    for _ in range(6000):
        run = run_folder(folder)
        rows = list(read_rows(run / METRICS)) if run else []
        if rows and rows[-1]["step"] >= step:
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def drawn(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_run_killed_between_checkpoints_is_drawn_as_one_that_was_not(small: Path) -> None:
    """TensorBoard had steps 41 to 70 twice, of a run killed at 70 with its checkpoint at 40."""
    kill_at(small, 12)  # before there is a checkpoint
    kill_at(small, 33)
    kill_at(small, 48)
    process = launch(small)
    assert process.communicate()[1]
    assert process.returncode == 0
    folder = run_folder(small)
    assert folder is not None
    rows = list(read_rows(folder / METRICS))
    for event, tag in (("step", "loss"), ("step", "tokens"), ("eval", "heldout_loss")):
        logged = [(row["step"], row[tag]) for row in rows if row["event"] == event]
        assert len(logged) == {"step": 60, "eval": 9}[event]
        found = drawn(folder, tag)
        assert [step for step, _ in found] == [step for step, _ in logged]
        values = [value for _, value in logged]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6)
    assert [step for step, _ in drawn(folder, "tokens_per_s")] == list(range(1, 61))
    # and the metrics themselves are those of an undisturbed run
    model = Registry.open(small / "home").newest("checkpoint")
    assert (folder / METRICS).read_bytes() == model.file(METRICS).read_bytes()
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 61))


def log_of(folder: Path, *trackers: Any) -> MetricsLog:
    folder.mkdir(exist_ok=True)
    return MetricsLog(folder, Trackers(trackers))


def train(log: MetricsLog, first: int, last: int, value: float = 0.0) -> None:
    for step in range(first, last + 1):
        log.row(event="step", step=step, tokens=8 * step, loss=value + step)
        log.time("step", step=step, tokens_per_s=value + 10.0, parts={"data": 1.0})


def test_a_rollback_takes_back_what_was_drawn(tmp_path: Path) -> None:
    log = log_of(tmp_path, TensorBoard(tmp_path))
    log.reset(b"")
    train(log, 1, 4)
    checkpoint = log.content()
    train(log, 5, 9)
    log.reset(checkpoint)
    log.row(event="rollback", step=4, tokens=32, from_step=10)
    train(log, 5, 6, 100.0)
    log.close()
    assert drawn(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 105), (6, 106)]
    assert [step for step, _ in drawn(tmp_path, "tokens")] == [1, 2, 3, 4, 5, 6]


def test_only_numbers_of_steps_and_evaluations_are_drawn() -> None:
    step = {"event": "step", "step": 3, "tokens": 9, "samples": [1, 2], "loss": 1.5}
    assert scalars({**step, "clipped": True}) == {"tokens": 9.0, "loss": 1.5, "clipped": 1.0}
    evaluation = {"event": "eval", "step": 3, "tokens": 9, "heldout_loss": 2.0}
    assert scalars(evaluation) == {"heldout_loss": 2.0}
    assert scalars({"event": "rollback", "step": 3, "from_step": 4}) == {}


def test_an_evaluation_of_another_algorithm_that_comes_again_is_drawn_once(
    pair_run: Callable[..., Path],
) -> None:
    """A run that was killed between an evaluation and the next checkpoint, which is of its step."""
    folder = pair_run(steps=2, evals=0)
    content = (folder / METRICS).read_bytes()
    for accuracy in (0.5, 0.625):
        log = log_of(folder, TensorBoard(folder))
        log.reset(content)
        log.row(event="eval", step=2, tokens=16, accuracy=accuracy)
        log.close()
    assert drawn(folder, "accuracy") == [(2, 0.625)]


def test_the_tokens_that_a_step_computed_are_drawn_beside_those_it_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = wandb_log(tmp_path)
    log.reset(b"")
    log.row(event="step", step=1, tokens=8, loss=1.0)
    log.time("step", step=1, tokens=11, tokens_per_s=10.0)
    expected = {"loss": 1.0, "tokens": 8.0, "step_tokens": 11.0, "tokens_per_s": 10.0}
    assert board.rows[1] == expected
    # It lost a step, so it begins at W&B with what was kept.
    content = log.content()
    log.row(event="step", step=2, tokens=16, loss=1.0)
    log = wandb_log(tmp_path)
    log.reset(content)
    assert [*board.runs.values()][-1] == {1: expected}


class Failing:
    """A tracker that fails from some call on."""

    name = "Failing"

    def __init__(self, calls: int):
        self.calls = calls

    def rewind(self, content: bytes) -> None:
        self._call()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        self._call()

    def close(self) -> None:
        self._call()

    def _call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise ConnectionError("the network is down")


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_a_tracker_that_fails_is_warned_of_once_and_the_others_go_on(
    tmp_path: Path, calls: int, capsys: pytest.CaptureFixture[str]
) -> None:
    log = log_of(tmp_path, Failing(calls), TensorBoard(tmp_path))
    log.reset(b"")
    train(log, 1, 2)
    log.close()
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "Failing failed and gets no more metrics" in said
    assert "the network is down" in said
    assert len(drawn(tmp_path, "loss")) == 2


class Board:
    """W&B's rule in short: a run by its id, which takes no step below its last."""

    def __init__(self, *, offline: bool = False) -> None:
        self.offline = offline
        self.runs: dict[str, dict[int, dict[str, float]]] = {}

    def init(self, *, id: str, **settings: Any) -> Board:
        self.rows = self.runs.setdefault(id, {})
        return self

    def log(self, values: Mapping[str, float], step: int) -> None:
        assert step >= max(self.rows, default=0), "W&B would drop it"
        self.rows.setdefault(step, {}).update(values)

    def finish(self) -> None: ...

    def losses(self) -> list[dict[int, float]]:
        return [{step: row["loss"] for step, row in rows.items()} for rows in self.runs.values()]


def wandb_log(folder: Path) -> MetricsLog:
    return log_of(folder, WandB(folder, "made", {}))


def test_a_run_that_lost_steps_goes_on_at_wandb_as_another_with_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = wandb_log(tmp_path)
    log.reset(b"")
    train(log, 1, 4)
    checkpoint = log.content()
    train(log, 5, 7)  # and is killed
    log = wandb_log(tmp_path)
    log.reset(checkpoint)
    train(log, 5, 6, 100.0)
    first, second = board.losses()
    assert first == {step: step for step in range(1, 8)}
    assert second == {1: 1, 2: 2, 3: 3, 4: 4, 5: 105, 6: 106}
    assert board.rows[3] == {"loss": 3.0, "tokens": 24.0, "tokens_per_s": 10.0}
    # stopped with everything saved, it goes on as the same
    log = wandb_log(tmp_path)
    log.reset(log.content())
    train(log, 7, 8)
    assert len(board.runs) == 2
    assert max(board.rows) == 8
    assert "warning" not in capsys.readouterr().err


def test_an_attempt_killed_while_it_goes_back_takes_no_id_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board()
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = wandb_log(tmp_path)
    log.reset(b"")
    train(log, 1, 2)
    checkpoint = log.content()
    train(log, 3, 4)
    WandB(tmp_path, "made", {}).rewind(checkpoint)  # killed before metrics.jsonl is put back
    log = wandb_log(tmp_path)
    log.reset(checkpoint)
    train(log, 3, 3, 100.0)
    assert board.losses()[-1] == {1: 1, 2: 2, 3: 103}


def test_an_offline_run_at_wandb_is_whole_in_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(offline=True)
    monkeypatch.setitem(sys.modules, "wandb", board)
    log = wandb_log(tmp_path)
    log.reset(b"")
    train(log, 1, 2)
    log = wandb_log(tmp_path)
    log.reset(log.content())
    train(log, 3, 3)
    assert board.losses() == [{1: 1, 2: 2}, {1: 1, 2: 2, 3: 3}]
