"""Runs from outside: found, told apart, followed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError, RefError
from bc2.registry import Draft, Position, Registry
from bc2.train.logs.runs import (
    RunFolder,
    find_run,
    is_running,
    latest_attempts,
    list_runs,
    mark_running,
    state_at_end,
)

LogRun = Callable[..., Path]

KEY = "0123456789ab" + 52 * "c"
OTHER = "ba9876543210" + 52 * "c"


def publish(registry: Registry, name: str = "made", key: str = KEY) -> str:
    draft = Draft("checkpoint", name, key, position=Position(40, 20480))
    with registry.stage(draft) as staged:
        (staged.path / "data.bin").write_bytes(key.encode())
        return staged.publish().digest


def at(folder: Path, seconds: float) -> None:
    """Set when a run last logged something."""
    os.utime(folder / "timing.jsonl", (seconds, seconds))


def test_a_run_by_folder_name_beginning_and_checkpoint(log_run: LogRun) -> None:
    folder = log_run()
    log_run("other", key=OTHER)
    registry = Registry.open()
    digest = publish(registry)
    refs = [str(folder), "made", "made-0123", folder.name, "checkpoint/made", "made@40"]
    for ref in [*refs, digest[:16]]:
        assert find_run(registry, ref).path == folder, ref


def test_of_several_with_one_name_the_newest_is_taken_and_said(
    log_run: LogRun, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = log_run(), log_run(key=OTHER)
    at(old, 1000)
    at(new, 2000)
    registry = Registry.open()
    assert find_run(registry, "made").path == new
    assert f"2 runs are called made: taking the newest, {new.name}" in capsys.readouterr().err
    assert find_run(registry).path == new
    assert f"taking the newest run, {new.name}" in capsys.readouterr().err
    with mark_running(old):
        assert find_run(registry).path == old, "one that is being trained is the newest"


def test_two_keys_with_one_beginning_are_ambiguous(log_run: LogRun) -> None:
    log_run(key="01" + 62 * "a")
    log_run(key="01" + 62 * "b")
    with pytest.raises(RefError, match="ambiguous") as caught:
        find_run(Registry.open(), "made-01")
    assert caught.value.exit_code == 4


def test_no_such_run_names_the_nearest(log_run: LogRun) -> None:
    registry = Registry.open()
    with pytest.raises(RefError, match="there is no run"):
        find_run(registry)
    with pytest.raises(RefError, match="bc2 pretrain"):
        find_run(registry, "made")
    log_run()
    for wrong in ("maed", "mad", "made-0123456789xx"):
        with pytest.raises(RefError, match="did you mean 'made") as caught:
            find_run(registry, wrong)
        assert caught.value.exit_code == 4
    with pytest.raises(RefError, match="checkpoint/maed"):
        find_run(registry, "checkpoint/maed")
    with pytest.raises(RefError, match=r"no run answers to '\./nowhere'"):
        find_run(registry, "./nowhere")


def test_a_checkpoint_without_its_folder_says_where_its_metrics_are(log_run: LogRun) -> None:
    shutil.rmtree(log_run())
    log_run("other", key=OTHER)
    registry = Registry.open()
    publish(registry)
    with pytest.raises(
        RefError, match=r"the run folder of checkpoint/made@40 is not here"
    ) as caught:
        find_run(registry, "checkpoint/made")
    assert "metrics.jsonl" in str(caught.value.todo)


def test_the_mark_lasts_as_long_as_the_process(log_run: LogRun) -> None:
    folder = log_run()
    assert not is_running(folder)
    script = (
        "import sys, pathlib; from bc2.train.logs.runs import mark_running\n"
        "with mark_running(pathlib.Path(sys.argv[1])): print('on', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-P", "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        assert is_running(folder)
        process.kill()
        process.wait()
        assert not is_running(folder)


def test_looking_never_keeps_a_trainer_from_starting(log_run: LogRun) -> None:
    """A probe by flock would: it holds the lock for a moment, and a trainer would refuse."""
    folder = log_run()
    (folder / "running").touch()
    done, seen = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            seen.append(is_running(folder))

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    for _ in range(2000):
        with mark_running(folder):
            pass
    with mark_running(folder):
        while not seen or not seen[-1]:
            pass
    done.set()
    for watcher in watchers:
        watcher.join()
    assert True in seen


@pytest.mark.parametrize(
    ("end", "name", "detail"),
    [
        ({"event": "finish"}, "finished", ""),
        ({"event": "stop", "signal": 15}, "stopped", "SIGTERM"),
        ({"event": "fail", "what": "the disk is full"}, "failed", "the disk is full"),
        (None, "died", "killed, or crashed"),
    ],
)
def test_how_an_attempt_ended(
    log_run: LogRun, end: dict[str, Any] | None, name: str, detail: str
) -> None:
    (attempt,) = RunFolder(log_run(end=end)).attempts()
    state = state_at_end(attempt.end)
    assert (state.name, state.detail) == (name, detail)


def test_attempts_begin_at_their_steps_and_take_monotonic_time(log_run: LogRun) -> None:
    run = RunFolder(log_run(attempts=(0, 15, 30), end={"event": "finish"}))
    attempts = run.attempts()
    assert [(one.event, one.step) for one in attempts] == [
        ("start", 0), ("resume", 15), ("resume", 30),
    ]  # fmt: skip
    # By the wall clock, the first took 14 seconds and the last none.
    assert [one.seconds for one in attempts] == [28.0, 58.0, 99.0]
    assert [one.last_step for one in attempts] == [14, 29, 40]
    assert latest_attempts(attempts) == attempts


def test_a_finished_training_is_not_part_of_the_one_begun_after_it(log_run: LogRun) -> None:
    folder = log_run(end={"event": "finish"})
    with (folder / "timing.jsonl").open("a") as stream:
        stream.write('{"event": "start", "time": 1.0, "elapsed": 0.0, "step": 0}\n')
    attempts = RunFolder(folder).attempts()
    assert len(attempts) == 2
    assert latest_attempts(attempts) == attempts[1:]


def test_a_broken_run_json_is_an_error_with_its_place(log_run: LogRun) -> None:
    folder = log_run()
    (folder / "run.json").write_text("{")
    with pytest.raises(DataError) as caught:
        _ = RunFolder(folder).facts
    assert caught.value.where == str(folder / "run.json")


def test_a_run_json_of_an_earlier_release_is_read(log_run: LogRun) -> None:
    path = log_run() / "run.json"
    values = json.loads(path.read_text())
    earlier = {**values, "tokens_per_step": values["batch_tokens"]}
    earlier["tokens_per_sample"] = values["sequence_length"]
    now = RunFolder(path.parent).facts
    path.write_text(json.dumps({k: earlier[k] for k in earlier if k not in _NEWER}))
    assert RunFolder(path.parent).facts == now


#: Names that bc2 0.1 did not know.
_NEWER = ("batch_tokens", "sequence_length")


def test_what_is_no_run_folder_is_not_listed(log_run: LogRun) -> None:
    folder = log_run(facts=False)
    (folder.parent / "stray").mkdir()
    (run,) = list_runs(Registry.open())
    assert (run.path, run.facts, run.name, run.key) == (folder, None, "made", KEY[:12])


def test_a_run_is_known_from_the_moment_it_is_marked(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "runs" / "made-0123456789ab"
    registry = Registry.open(tmp_path / "home")
    assert list_runs(registry) == []
    with mark_running(folder):
        assert find_run(registry, "made").path == folder
        assert list_runs(registry)[0].running()
