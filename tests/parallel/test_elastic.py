"""Ranks that die, fail, or are told to stop: what becomes of the others, and of the run.

A run here is 36 steps of 8 samples on two gloo ranks, saved every 4 steps.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import warmed

from bc2.registry import Artifact, Registry

BC2 = [sys.executable, "-P", "-m", "bc2"]
STEPS, EVERY, ROWS = 36, 4, 8
RUN = [
    "pretrain", "small.toml", "--quiet",
    "--set", "pretrain.checkpoint_every=4 steps", "--set", "pretrain.sample_tokens=4",
]  # fmt: skip
LENGTH = ["--set", f"pretrain.length={STEPS} steps"]
TWO = ["--nproc", "2"]

#: How soon everything must have ended after a rank did, seconds, on a busy machine.
SOON_S = 25.0

Process = subprocess.Popen[str]


@contextmanager
def running(folder: Path, command: list[str], **environment: str) -> Iterator[Process]:
    """A launcher, warmed as its ranks are; it and they are killed at the end.

    Not by a fork where `environment` has a PYTHONPATH: that is for interpreters to read.
    """
    process = warmed.Popen(
        command,
        children=True,
        cwd=folder,
        env={**os.environ, "BC2_HOME": str(folder / "home"), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    known: list[psutil.Process] = []
    try:
        yield process
    finally:
        if process.poll() is None:
            known = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for one in known:
            one.kill()
        process.communicate()


def ranks_of(process: Process) -> dict[int, psutil.Process]:
    """The rank processes of a launcher, by rank."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            # A forked one has its parent's environment in /proc, and a name instead.
            named = child.name().removeprefix("rank ")
            place = named if named.isdecimal() else child.environ().get("RANK")
        except psutil.Error:
            continue
        if place is not None:
            found[int(place)] = child
    return found


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def timing(folder: Path, *events: str) -> list[dict[str, Any]]:
    (run,) = (folder / "home" / "runs").iterdir()
    lines = (run / "timing.jsonl").read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["event"] in events]


def wait_until(process: Process, holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not holds():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it neither trains nor ends"
        time.sleep(0.002)


def wait_for_step(process: Process, folder: Path, step: int, before: int = 0) -> None:
    """Until this start has made a step; `before`: step rows when it was started."""

    def made() -> bool:
        if not list((folder / "home" / "runs").glob("*/timing.jsonl")):
            return False
        return any(row["step"] >= step for row in timing(folder, "step")[before:])

    wait_until(process, made)


def steps_made(folder: Path) -> int:
    return len(timing(folder, "step"))


def copy_of(source: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copytree(source / "home", folder / "home")
    shutil.copyfile(source / "small.toml", folder / "small.toml")
    return folder


def finished(folder: Path) -> Artifact:
    registry = Registry.open(folder / "home")
    artifact = registry.newest("checkpoint")
    registry.verify(artifact)
    return artifact


def unfinished(folder: Path) -> list[Artifact]:
    """The checkpoints of a run that has not ended, the furthest last."""
    found = [a for a in Registry.open(folder / "home").list("checkpoint") if not a.finished]
    return sorted(found, key=lambda artifact: artifact.position.step if artifact.position else 0)


def samples_of(artifact: Artifact) -> list[int]:
    rows = map(json.loads, artifact.file("metrics.jsonl").read_text().splitlines())
    spans = [row["samples"] for row in rows if row["event"] == "step"]
    return [index for first, last in spans for index in range(first, last + 1)]


def spoil(artifact: Artifact) -> None:
    """Flip a byte in the middle of a checkpoint's largest file."""
    path = max((artifact.path / name for name in artifact.files()), key=lambda p: p.stat().st_size)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


@pytest.fixture(scope="module")
def undisturbed(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What two ranks make of the run if nothing happens to them."""
    folder = copy_of(prepared_home, tmp_path_factory.mktemp("undisturbed") / "run")
    with running(folder, [*BC2, *RUN, *LENGTH, *TWO]) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    artifact = finished(folder)
    assert samples_of(artifact) == list(range(STEPS * ROWS))
    return artifact


def test_a_killed_rank_is_started_again(
    undisturbed: Artifact, prepared_home: Path, tmp_path: Path
) -> None:
    """Nobody does anything: all ranks begin again at the last checkpoint."""
    folder = copy_of(prepared_home, tmp_path / "killed")
    with running(folder, [*BC2, *RUN, *LENGTH, *TWO, "--max-restarts", "1"]) as process:
        wait_for_step(process, folder, 10)
        ranks_of(process)[1].kill()
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "rank 1 was killed by SIGKILL; starting all ranks again (restart 1 of 1)" in err
    began = [(row["event"], row["step"]) for row in timing(folder, "start", "resume")]
    assert [event for event, _ in began] == ["start", "resume"]
    assert 4 <= began[1][1] < STEPS
    assert finished(folder).digest == undisturbed.digest
    assert out == f"{undisturbed.ref}\n"


def kill_one(folder: Path, at: int) -> None:
    """Without restarts the end of one is the end of all, at once and said once."""
    with running(folder, [*BC2, *RUN, *LENGTH, *TWO]) as process:
        wait_for_step(process, folder, at)
        ranks = ranks_of(process)
        began = time.monotonic()
        ranks[1].kill()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert time.monotonic() - began < SOON_S
    assert "error: rank 1 was killed by SIGKILL" in err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert not any(map(alive, ranks.values()))


def interrupt(folder: Path, command: list[str], signum: int, steps: int) -> list[str]:
    """Stop a start after so many steps more; the command that it says goes on with it."""
    before = steps_made(folder)
    with running(folder, command) as process:
        wait_until(process, lambda: steps_made(folder) >= before + steps)
        ranks = ranks_of(process)
        process.send_signal(signum)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum, err
    assert not any(map(alive, ranks.values()))
    stopped = timing(folder, "stop")[-1]["step"]
    assert unfinished(folder)[-1].position.step == stopped < STEPS
    assert f"stopped at step {stopped} of {STEPS}; everything is saved" in err
    assert err.count("error:") == 1
    told = err.partition("go on with: ")[2].splitlines()[0]
    assert told.startswith("bc2 pretrain small.toml --set")
    assert told.endswith("--nproc 2")
    return [*BC2, *shlex.split(told)[1:]]


def test_a_run_that_everything_happens_to(
    undisturbed: Artifact, prepared_home: Path, tmp_path: Path
) -> None:
    """A rank killed, SIGTERM, Ctrl-C, and a checkpoint with a flipped bit, in one run."""
    folder = copy_of(prepared_home, tmp_path / "run")
    kill_one(folder, 6)
    told = interrupt(folder, [*BC2, *RUN, *LENGTH, *TWO], signal.SIGTERM, 4)
    told = interrupt(folder, told, signal.SIGINT, 4)
    spoil(unfinished(folder)[-1])
    worse = copy_of(folder, tmp_path / "worse")
    before = unfinished(folder)[-2].position
    with running(folder, told) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "is not whole" in err
    assert before is not None
    assert timing(folder, "resume")[-1]["step"] == before.step
    assert finished(folder).digest == undisturbed.digest
    all_spoiled(worse)


def test_a_hang_up_is_ignored_where_it_was(
    undisturbed: Artifact, prepared_home: Path, tmp_path: Path
) -> None:
    """Under nohup neither the launcher nor a rank sees it, at any step and while they start."""
    folder = copy_of(prepared_home, tmp_path / "hung-up")
    rng = random.Random()
    steps = sorted(rng.sample(range(1, STEPS - 4), 3))
    with running(folder, ["nohup", *BC2, *RUN, *LENGTH, *TWO]) as process:
        wait_until(process, lambda: psutil.Process(process.pid).name() != "nohup")

        def started() -> bool:
            os.kill(process.pid, signal.SIGHUP)
            return len(ranks_of(process)) == 2

        wait_until(process, started)
        for step in steps:
            wait_for_step(process, folder, step)
            for pid in (process.pid, *(rank.pid for rank in ranks_of(process).values())):
                os.kill(pid, signal.SIGHUP)
        _, err = process.communicate(timeout=200)
    assert process.returncode == 0, (steps, err)
    assert finished(folder).digest == undisturbed.digest
    assert [row["event"] for row in timing(folder, "start", "resume", "stop")] == ["start"]


def test_a_hang_up_saves(prepared_home: Path, tmp_path: Path) -> None:
    """As SIGTERM does, and the same command goes on from there."""
    folder = copy_of(prepared_home, tmp_path / "hung-up")
    command = [*BC2, *RUN, "--set", "pretrain.length=2000 steps", *TWO]
    for signum in (signal.SIGHUP, signal.SIGTERM):
        with running(folder, command) as process:
            began = len(list((folder / "home" / "runs").glob("*/timing.jsonl")))
            wait_for_step(process, folder, 3, steps_made(folder) if began else 0)
            process.send_signal(signum)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 128 + signum, err
        stop = timing(folder, "stop")[-1]
        assert (stop["signal"], unfinished(folder)[-1].position.step) == (signum, stop["step"])
    first, second = (row["step"] for row in timing(folder, "stop"))
    assert timing(folder, "resume")[-1]["step"] == first < second


def test_a_second_signal_ends_launcher_and_ranks_at_once(
    prepared_home: Path, tmp_path: Path
) -> None:
    """The ranks are stuck, so that the first one is not enough."""
    folder = copy_of(prepared_home, tmp_path / "stuck")
    with running(folder, [*BC2, *RUN, *LENGTH, *TWO]) as process:
        wait_for_step(process, folder, 5)
        ranks = ranks_of(process)
        for rank in ranks.values():
            rank.suspend()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 1
    assert process.returncode == 143, err
    assert err.count("error: ") == 1
    wait = time.monotonic() + 5
    while any(map(alive, ranks.values())):
        assert time.monotonic() < wait


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_signal_while_ranks_import_ends_all(
    prepared_home: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    folder = copy_of(prepared_home, tmp_path / "starting")
    process = subprocess.Popen(
        [*BC2, *RUN, *LENGTH, *TWO], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "BC2_HOME": str(folder / "home")},
    )  # fmt: skip
    wait_until(process, lambda: len(ranks_of(process)) == 2)
    ranks = ranks_of(process)
    time.sleep(random.Random(signum).uniform(0, 2))
    process.send_signal(signum)
    _, err = process.communicate(timeout=SOON_S)
    assert process.returncode == 128 + signum, err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert not any(map(alive, ranks.values()))


def all_spoiled(folder: Path) -> None:
    """With nothing to go on from it says so, and trains nothing in its place."""
    for artifact in unfinished(folder)[:-1]:
        spoil(artifact)
    before = steps_made(folder)
    with running(folder, [*BC2, *RUN, *LENGTH, *TWO]) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert "error: a file does not match its SHA-256" in err
    assert "Traceback" not in err
    assert steps_made(folder) == before


#: Imported by every Python below: has one rank fail in its sixth step.
FAULT = """\
import os
if os.environ.get("RANK") == "1":
    from bc2.errors import DataError
    from bc2.train.engines.local import LocalEngine
    plain, made = LocalEngine.update, []
    def update(self, *args, **kwargs):
        made.append(1)
        if len(made) == 6:
            raise DataError("a fault of rank 1", where="here", todo="nothing")
        return plain(self, *args, **kwargs)
    LocalEngine.update = update
"""


def test_a_rank_that_fails_speaks_for_all(prepared_home: Path, tmp_path: Path) -> None:
    """The other one only loses it: no time-out, and its own words are not said.

    Bad data stays bad: the ranks are not started again. And what lies in the working directory
    is imported by none.
    """
    folder = copy_of(prepared_home, tmp_path / "faulty")
    (folder / "typer.py").write_text("raise ImportError('of the working directory')")
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(FAULT)
    command = [*BC2, *RUN, *LENGTH, *TWO, "--max-restarts", "9"]
    with running(folder, command, PYTHONPATH=str(tmp_path / "fault")) as process:
        wait_for_step(process, folder, 5)
        began = time.monotonic()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert time.monotonic() - began < SOON_S
    assert "error: a fault of rank 1, at step 6, samples 40 to 47\n  where: here" in err
    assert "not started again: the same would come again" in err
    assert "starting all ranks again" not in err
    assert "step 4 is saved; go on from there with: bc2 pretrain" in err
    assert err.count("error:") == 1
    assert "Traceback" not in err


#: The soak's run: short steps, and so many that 30 starts do not make them all.
KILLS, SOAK_STEPS = 30, 310


def test_ranks_end_with_a_killed_launcher(small: Path) -> None:
    with running(small, [*BC2, *RUN, *LENGTH, *TWO]) as process:
        wait_for_step(process, small, 1)
        ranks = ranks_of(process)
        assert len(ranks) == 2
        process.kill()
        end = time.monotonic() + SOON_S
        while any(alive(rank) for rank in ranks.values()):
            assert time.monotonic() < end, "a rank trains on for nobody"
            time.sleep(0.1)


@pytest.mark.slow
def test_soak_of_random_kills(prepared_home: Path, tmp_path: Path) -> None:
    """30 SIGKILLs at random ranks at random moments; the launcher alone starts all again."""
    length = ["--set", f"pretrain.length={SOAK_STEPS} steps"]
    length += ["--set", "pretrain.eval_every=300 steps"]
    plain = copy_of(prepared_home, tmp_path / "plain")
    with running(plain, [*BC2, *RUN, *length, *TWO]) as process:
        _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    folder = copy_of(prepared_home, tmp_path / "soak")
    restarts = ["--max-restarts", str(KILLS + 10)]
    rng, killed = random.Random(5), []
    share = SOAK_STEPS / (KILLS + 1)
    with running(folder, [*BC2, *RUN, *length, *TWO, *restarts]) as process:
        for number in range(KILLS):
            before = steps_made(folder) if number else 0
            wait_for_step(process, folder, int(share * (number + rng.random())), before)
            time.sleep(rng.uniform(0, 0.05))
            victim = rng.randrange(2)
            ranks = ranks_of(process)
            ranks[victim].kill()
            killed.append((victim, timing(folder, "step")[-1]["step"]))
            wait_until(process, lambda was=ranks: not any(map(alive, was.values())))
        _, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    assert finished(folder).digest == finished(plain).digest
    began = [row["event"] for row in timing(folder, "start", "resume")]
    assert len(began) == KILLS + 1
    made = steps_made(folder)
    saves = len(timing(folder, "save"))
    print(
        f"{KILLS} kills at (rank, step) {killed}: {made} steps done for {SOAK_STEPS}, "
        f"goodput {SOAK_STEPS / made:.1%}, a checkpoint every {EVERY} steps, {saves} saves"
    )
    assert SOAK_STEPS / made > 0.5
