"""Ranks that wait for others: they say so, obey signals, and give up in time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import warmed

from bc2.parallel.rank_store import run_aside, spans


@contextmanager
def rank(
    folder: Path, number: int, world: int, port: int, *options: str, **also: str
) -> Iterator[subprocess.Popen[str]]:
    """`bc2 pretrain` as one rank that a launcher has started."""
    said = {
        "WORLD_SIZE": str(world), "RANK": str(number),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip
    process = warmed.Popen(
        [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml",
         "--set", "pretrain.micro_batch=1", *options],
        cwd=folder, env={**os.environ, **said, **also},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_says_that_it_waits_and_obeys_signals(
    small: Path, port: int, number: int, signum: signal.Signals
) -> None:
    with rank(small, number, 4, port) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        missing = "rank 0" if number else "ranks 1-3"
        assert f"rank {number} of 4 waits for {missing} at localhost:{port}, up to 600 s" in line
        assert f"WORLD_SIZE=4, RANK={number}, MASTER_ADDR=localhost, MASTER_PORT={port}" in line
        began = time.monotonic()
        process.send_signal(signum)
        said = process.communicate(timeout=30)[1]
        took = time.monotonic() - began
    assert process.returncode == 128 + signum
    assert "error: interrupted" in said
    assert "Traceback" not in said
    # A second, and what a busy machine takes to end a process.
    assert took < 5


def test_the_ranks_that_did_not_come_are_named_by_all_that_did(small: Path, port: int) -> None:
    limit = ["--rendezvous-timeout", "8"]
    with (
        rank(small, 0, 4, port, *limit) as first,
        rank(small, 2, 4, port, "--rendezvous-timeout", "60") as other,
    ):
        said = [process.communicate(timeout=60)[1] for process in (first, other)]
    for process, err in zip((first, other), said, strict=True):
        assert process.returncode == 1
        assert f"ranks 1, 3 of 4 did not come to localhost:{port}" in err
        assert "wait longer with --rendezvous-timeout" in err
        assert "env -u WORLD_SIZE -u RANK bc2" in err
        assert err.count("error:") == 1
    assert "in 8 s" in said[0]


@pytest.mark.parametrize("there", ["nothing", "something mute", "no such machine"])
def test_rank_0_does_not_come(small: Path, port: int, there: str) -> None:
    also = {"MASTER_ADDR": "nowhere.invalid"} if there == "no such machine" else {}
    with socket.socket() as mute:
        if there == "something mute":
            mute.bind(("localhost", port))
            mute.listen()
        with rank(small, 1, 2, port, "--rendezvous-timeout", "3", **also) as process:
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "rank 1 did not find rank 0 at" in said
    assert f":{port} in 3 s" in said
    assert "start rank 0 there" in said


def test_the_port_of_rank_0_is_in_use(small: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with rank(small, 0, 2, port) as process:
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert f"port {port}, where the ranks were to meet, is in use on this machine" in said
    assert "another MASTER_PORT" in said
    assert "WORLD_SIZE=2, RANK=0" in said


def test_a_launcher_says_that_it_waits_for_other_machines(small: Path, port: int) -> None:
    there = f"localhost:{port}"
    process = warmed.Popen(
        [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", "--nnodes", "2",
         "--node-rank", "1", "--rendezvous", there],
        cwd=small, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting for" in line:
            break
    assert line == f"waiting for the launchers of 2 machines at {there}, up to 600 s\n"
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert said.count("error:") == 1


def test_a_launcher_gives_up(small: Path, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    from bc2.cli import main

    with pytest.raises(SystemExit) as left:
        main(["pretrain", "small.toml", "--nnodes", "2", "--node-rank", "1", "--rendezvous",
              f"localhost:{port}", "--rendezvous-timeout", "1"])  # fmt: skip
    assert left.value.code == 1
    assert f"nothing listens at port {port} of localhost after 1 s" in capsys.readouterr().err


def test_what_runs_aside_returns_raises_and_is_left() -> None:
    assert run_aside(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        run_aside(lambda: 1 / 0)
    never, asked = threading.Event(), []

    def enough() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        run_aside(never.wait, enough)
    never.set()


@pytest.mark.parametrize(
    ("ranks", "said"),
    [([1], "rank 1"), ([1, 3], "ranks 1, 3"), ([7, 1, 2, 3, 5], "ranks 1-3, 5, 7")],
)
def test_ranks_in_words(ranks: list[int], said: str) -> None:
    assert spans(ranks) == said
