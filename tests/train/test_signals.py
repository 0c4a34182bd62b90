"""SIGINT and SIGTERM at every kind of moment: quick to leave, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bc2.errors import Interrupted
from bc2.registry import Artifact, Registry
from bc2.train.pretrain import heldout
from bc2.train.pretrain.next_token import NextToken

STEPS = 12
ROLLBACK = 'pretrain.guard.action="rollback"'


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def timing(folder: Path, *events: str) -> list[dict[str, Any]]:
    (run,) = (folder / "home" / "runs").iterdir()
    rows = [json.loads(line) for line in (run / "timing.jsonl").read_bytes().splitlines()]
    return [row for row in rows if row["event"] in events]


def saved() -> list[int]:
    checkpoints = Registry.open().list("checkpoint")
    return sorted(a.position.step for a in checkpoints if a.position and not a.finished)


def rows(artifact: Artifact, *events: str) -> list[int]:
    lines = artifact.file("metrics.jsonl").read_bytes().splitlines()
    return [row["step"] for row in map(json.loads, lines) if row["event"] in events]


def test_a_long_step_is_abandoned(small: Path, launch, train, straight) -> None:
    """Eight micro-batches of four seconds: a notice of 30 s would do, and little of it is used."""
    one = "pretrain.micro_batch=1"
    slow = dict.fromkeys(range(41, 48), "time.sleep(4)")
    stop = {40: "os.kill(os.getpid(), signal.SIGTERM)"}
    process = launch(one, actions={**slow, **stop})
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    (row,) = timing(small, "stop")
    assert (row["step"], row["next_sample"], row["signal"]) == (5, 40, signal.SIGTERM)
    assert row["seconds"] < 4, "it waited for the next micro-batches"
    assert "stopped at step 5 of 12; everything is saved" in err
    assert saved() == [4, 5]
    assert train(one).digest == straight(one).digest
    assert timing(small, "resume")[0]["step"] == 5


def test_a_wait_for_data_is_abandoned(small: Path, launch, train, straight) -> None:
    process = launch(setup=STUCK, actions={40: "stuck.set()"})
    deadline = time.monotonic() + 100
    while not (small / "stuck").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    # what was read ahead is trained on first
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    (row,) = timing(small, "stop")
    assert 5 <= row["step"] < STEPS
    assert row["seconds"] < 5
    assert train().digest == straight().digest
    assert timing(small, "resume")[0]["step"] == row["step"]


#: From an event on, reading token shards blocks in the kernel for ever.
STUCK = """
stuck, window, pipe = threading.Event(), TokenShards.window, os.pipe()
def read(self, split, *where):
    if stuck.is_set() and split == "train":
        open("stuck", "w").close()
        os.read(pipe[0], 1)
    return window(self, split, *where)
TokenShards.window = read
"""


def test_a_stuck_reader_ends_the_run(small: Path, launch, train, straight) -> None:
    """The process leaves although a thread of it sits in a read that never returns."""
    began = time.monotonic()
    process = launch(
        "pretrain.data_timeout_s=2", setup=STUCK, actions={40: "stuck.set()"}
    )  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert time.monotonic() - began < 100
    (row,) = timing(small, "fail")
    first, last = row["samples"]
    assert (first, last) == (8 * (row["step"] - 1), 8 * row["step"] - 1)
    assert "no data for 2 s" in row["what"]
    assert f"where: step {row['step']}, samples {first} to {last}" in err
    assert "Traceback" not in err
    assert saved()[-1] == row["saved"] == row["step"] - 1
    assert train().digest == straight().digest
    assert timing(small, "resume")[0]["step"] == row["saved"]


class Evaluations:
    """Ends the process politely in one batch of one evaluation, counted from 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, batch: int):
        plain = NextToken.__call__
        seen = {"evaluation": -1, "batch": 0}
        real = heldout.heldout_loss

        def loss(*args: Any) -> Any:
            seen.update(evaluation=seen["evaluation"] + 1, batch=-1)
            return real(*args)

        def call(one: NextToken, model: Any, batch_: Any, clock: Any = None) -> Any:
            if not torch.is_grad_enabled():
                seen["batch"] += 1
                if (seen["evaluation"], seen["batch"]) == (number, batch):
                    terminate()
            return plain(one, model, batch_, clock)

        monkeypatch.setattr(heldout, "heldout_loss", loss)
        monkeypatch.setattr(NextToken, "__call__", call)


@pytest.mark.parametrize(("number", "step"), [(0, 0), (1, 8), (2, 12)])
def test_an_evaluation_is_abandoned_and_made_later(
    train, straight, small: Path, monkeypatch, number: int, step: int
) -> None:
    with monkeypatch.context() as patch:
        Evaluations(patch, number, batch=2)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of 12") as caught:
            train()
    assert caught.value.exit_code == 143
    assert [row["step"] for row in timing(small, "eval")] == [0, 8][:number]
    assert saved() == {0: [], 8: [4, 8], 12: [8, 12]}[step]
    made = train()
    assert made.digest == straight().digest
    assert rows(made, "eval") == [0, 8, 12]
    assert [row["step"] for row in timing(small, "eval")] == [0, 8, 12]


def test_samples_are_abandoned_with_their_evaluation(
    train, straight, small: Path, monkeypatch
) -> None:
    real = heldout.Heldout._samples
    seen = []

    def samples(self: heldout.Heldout) -> Any:
        seen.append(1)
        if len(seen) == 2:
            terminate()
        return real(self)

    monkeypatch.setattr(heldout.Heldout, "_samples", samples)
    with pytest.raises(Interrupted, match="stopped at step 8"):
        train()
    made = train()
    assert made.digest == straight().digest
    assert rows(made, "sample") == [0] * 3 + [8] * 3 + [12] * 3


def test_an_abandoned_evaluation_before_a_rollback(
    train, straight, small: Path, monkeypatch, poison
) -> None:
    """The rollback goes to a checkpoint that was saved without its evaluation."""
    poison(72, add=float("nan"))
    whole = straight(ROLLBACK)
    assert rows(whole, "rollback") == [8]
    with monkeypatch.context() as patch:
        Evaluations(patch, 1, batch=2)
        with pytest.raises(Interrupted, match="stopped at step 8"):
            train(ROLLBACK)
    assert train(ROLLBACK).digest == whole.digest
    assert rows(whole, "eval") == [0, 8, 12]


def test_a_signal_while_a_step_is_changed_waits_for_its_end(
    train, straight, small: Path, monkeypatch
) -> None:
    from bc2.train.engines.local import LocalEngine

    plain, made = LocalEngine.update, []

    def update(self: LocalEngine, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        if len(made) == 6:
            terminate()
        plain(self, *args, **kwargs)

    monkeypatch.setattr(LocalEngine, "update", update)
    with pytest.raises(Interrupted, match="stopped at step 6"):
        train()
    assert saved() == [4, 6]
    assert train().digest == straight().digest


def test_a_signal_right_after_a_rollback(train, straight, small: Path, poison, at_sample) -> None:
    """Where it stands then is no place to roll back to: the next bad step goes back further."""
    poison(72, 80, add=float("nan"))  # step 10, and after the rollback to step 8 step 9
    whole = straight(ROLLBACK, "pretrain.guard.max_bad=5")
    lines = map(json.loads, whole.file("metrics.jsonl").read_bytes().splitlines())
    (row,) = [row for row in lines if row["event"] == "rollback"]
    assert (row["step"], row["samples"]) == (8, [64, 87])
    at_sample({76: terminate})  # in the last micro-batch of step 10, which is judged all the same
    with pytest.raises(Interrupted, match="stopped at step 8"):
        train(ROLLBACK, "pretrain.guard.max_bad=5")
    assert saved() == [4, 8]
    assert train(ROLLBACK, "pretrain.guard.max_bad=5").digest == whole.digest
