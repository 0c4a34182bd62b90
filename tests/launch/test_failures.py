"""What is said of ranks that failed, were stopped or did not meet."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from bc2.errors import Interrupted, RunFailed
from bc2.launch.failures import headline, raise_apart, stop_error
from bc2.launch.rank_options import Ranks
from bc2.ranks import LOST, RankFailed


def failure(folder: Path, code: int, message: dict[str, Any] | str = "") -> ProcessFailure:
    """Of a rank that wrote `message` as `bc2.ranks.report_error` does, or as torch does."""
    path = folder / "error.json"
    if isinstance(message, dict):
        message = {**message, "extraInfo": {"timestamp": "1"}}
    path.write_text(json.dumps({"message": message}))
    return ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file=str(path))


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        (1, {"message": "error: no loss\n  at step 3"}, "rank 2: no loss"),
        (-signal.SIGKILL, "", "rank 2 was killed by SIGKILL"),
        (9, "torch's own words", "rank 2 ended with exit code 9"),
    ],
)
def test_a_rank_that_ended_is_told_in_one_line(tmp_path: Path, code, message, said) -> None:
    assert headline(2, failure(tmp_path, code, message)) == said


def report(folder: Path, rank: int, message: str | None, age: int = 0) -> None:
    path = folder / str(rank) / "error.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"message": {"message": message} if message else "torch's own"}))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_ranks_that_a_signal_stopped_tell_what_was_saved(tmp_path: Path) -> None:
    report(tmp_path, 0, f"error: {LOST}")
    report(tmp_path, 1, "error: the disk is full", age=1)
    report(tmp_path, 2, "stopped at step 7\n  go on with: bc2 pretrain x", age=2)
    error = stop_error(tmp_path, signal.SIGTERM)
    assert isinstance(error, RankFailed)
    assert "go on with: bc2 pretrain x" in str(error)
    assert error.exit_code == 128 + signal.SIGTERM


def test_else_they_tell_their_own_error_and_not_that_others_are_gone(tmp_path: Path) -> None:
    report(tmp_path, 0, f"error: {LOST}")
    report(tmp_path, 1, "error: the disk is full", age=1)
    assert "the disk is full" in str(stop_error(tmp_path, signal.SIGINT))


def test_ranks_that_left_no_words_are_said_to_be_stopped(tmp_path: Path) -> None:
    report(tmp_path, 0, None)
    report(tmp_path, 1, f"error: {LOST}")
    error = stop_error(tmp_path, signal.SIGINT)
    assert isinstance(error, Interrupted)
    assert error.exit_code == 130
    assert "run the same command again" in str(error.todo)


@pytest.mark.parametrize(
    ("error", "what", "todo"),
    [
        (RendezvousClosedError(), "another machine has ended the run", "what the launcher there"),
        (RendezvousTimeoutError(), "too few machines have come", "the same command on all"),
        (RendezvousConnectionError(), "first machine cannot be reached", "whether it runs"),
        (OSError("no socket\nand more"), "the ranks could not be started: no socket", "the port"),
        (RuntimeError(), "the ranks could not be started: RuntimeError", "the port"),
    ],
)
def test_ranks_that_did_not_meet(error: Exception, what: str, todo: str) -> None:
    """Also by an error without words, as torch raises the first two."""
    with pytest.raises(RunFailed) as caught:
        raise_apart(Ranks(nnodes="2", rendezvous="first:29500"), error)
    assert what in caught.value.what
    assert todo in str(caught.value.todo)
    assert caught.value.where == "--rendezvous first:29500"
    assert caught.value.__cause__ is error


def test_one_machine_has_no_place_where_its_ranks_meet() -> None:
    with pytest.raises(RunFailed) as caught:
        raise_apart(Ranks(nproc=2), RuntimeError("no port"))
    assert caught.value.where is None
