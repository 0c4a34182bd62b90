"""`bc2 watch` beside a run, to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warmed

from bc2.cli import main
from bc2.process.signals import SignalReceived
from bc2.registry import Registry
from bc2.report import watch as watching
from bc2.train.logs.runs import RunFolder, find_run, is_running, mark_running

LogRun = Callable[..., Path]

BC2 = [sys.executable, "-P", "-m", "bc2"]
PRETRAIN = ["pretrain", "small.toml", "--set", "pretrain.length=2000 steps", "--quiet"]


def start(*args: str) -> subprocess.Popen[str]:
    return warmed.Popen(
        [*BC2, *args], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return warmed.run([*BC2, *args], text=True, capture_output=True, check=False, timeout=60)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def test_a_run_is_followed_until_it_is_stopped(small: Path) -> None:
    trainer = start(*PRETRAIN)
    runs = small / "home" / "runs"
    try:
        wait_until(lambda: any(map(is_running, runs.glob("*"))))
        watcher = start("watch", "small", "--interval", "0.05", "--json")
        assert watcher.stderr is not None
        seen = [watcher.stderr.readline() for _ in range(2)]
        folder = find_run(Registry.open(), "small").path
        wait_until(lambda: sum(row["event"] == "step" for row in RunFolder(folder).timing()) > 20)
        # One that looks once does not wait for the end.
        once = json.loads(run("watch", "small", "--once", "--json").stdout)
        assert once["state"] == "running"
        assert 0 < once["step"] < once["steps"] == 2000
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(timeout=60) == 143
        out, err = watcher.communicate(timeout=60)
    finally:
        trainer.kill()
        trainer.communicate()
    assert watcher.returncode == 0, err
    assert all(line.startswith(f"{folder.name}: running") for line in [*seen, *err.splitlines()])
    last = json.loads(out)
    assert (last["state"], last["detail"]) == ("stopped", "SIGTERM")
    rows = [json.loads(row) for row in (folder / "timing.jsonl").read_text().splitlines()]
    assert last["step"] == rows[-1]["step"] >= once["step"]


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"event": "finish"}, "finished"),
        ({"event": "stop", "signal": 15}, "stopped"),
        ({"event": "fail", "what": "the disk is full"}, "failed"),
        (None, "died"),
    ],
)
def test_a_run_that_has_ended_is_shown_and_left(
    log_run: LogRun, end: dict[str, object] | None, state: str
) -> None:
    folder = log_run(end=end)
    done = run("watch", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    shown = json.loads(done.stdout)
    assert (shown["state"], shown["step"], shown["path"]) == (state, 40, str(folder))
    assert f"state          {state}" in run("watch", "made").stdout


def test_ctrl_c_leaves_the_run_alone(log_run: LogRun) -> None:
    folder = log_run()
    with mark_running(folder):
        watcher = start("watch", "made", "--interval", "0.05")
        assert watcher.stderr is not None
        assert "running" in watcher.stderr.readline()
        watcher.send_signal(signal.SIGINT)
        out, err = watcher.communicate(timeout=30)
        assert is_running(folder)
    assert (watcher.returncode, out) == (130, "")
    assert "left the watching; the run goes on" in err
    assert f"bc2 watch {folder.name}" in err


def test_on_a_terminal_it_is_drawn_in_place(log_run: LogRun) -> None:
    """The live view goes to the terminal; the last state to stdout, which is not one here."""
    import pty

    folder = log_run()
    ours, theirs = pty.openpty()
    with mark_running(folder):
        watcher = subprocess.Popen(
            [*BC2, "watch", "made", "--interval", "0.05"], text=True,
            stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        drawn = b""
        while b"running" not in drawn:
            drawn += read(ours)
    out, _ = watcher.communicate(timeout=30)
    while chunk := read(ours):
        drawn += chunk
    os.close(ours)
    assert watcher.returncode == 0
    assert "died" in out
    assert b"\x1b[2K" in drawn, "it goes back over its lines"


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        # The other side is closed.
        return b""


def test_a_run_whose_metrics_are_none_is_an_error_and_no_traceback(log_run: LogRun) -> None:
    folder = log_run()
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "metrics": [{"name": "loss"}]}))
    for verb in ("watch", "report"):
        done = run(verb, "made")
        assert (done.returncode, done.stdout) == (3, "")
        assert "run.json" in done.stderr
        assert "not a list of metrics" in done.stderr
        assert "start the run again" in done.stderr
        assert "Traceback" not in done.stderr


def test_wrong_inputs(log_run: LogRun) -> None:
    none = run("watch")
    assert (none.returncode, none.stdout) == (4, "")
    assert "bc2 pretrain RECIPE" in none.stderr
    log_run()
    wrong = run("watch", "maed", "--once")
    assert wrong.returncode == 4
    assert "did you mean 'made'?" in wrong.stderr
    assert run("watch", "made", "--interval", "0").returncode == 2


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "left the watching; the run goes on"),
        (SignalReceived(signal.SIGTERM), 143, "left the watching; the run goes on"),
    ],
)
def test_what_ended_the_watching_is_told(
    log_run: LogRun, monkeypatch, capsys, stop: KeyboardInterrupt, code: int, said: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise stop

    folder = log_run()
    monkeypatch.setattr(watching, "watch", stopped)
    with pytest.raises(SystemExit) as caught:
        main(["watch", folder.name])
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""
