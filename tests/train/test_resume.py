"""A run that is killed and goes on is, bit for bit, the run that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bc2.registry import Artifact, Registry

COMMAND = [sys.executable, "-P", "-m", "bc2", "pretrain", "small.toml", "--quiet"]


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "BC2_HOME": str(folder / "home")}
    return subprocess.Popen(
        [*COMMAND, *extra], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(folder: Path, *extra: str) -> str:
    process = start(folder, *extra)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip()


def finished(folder: Path) -> Artifact:
    registry = Registry.open(folder / "home")
    artifact = registry.newest("checkpoint")
    registry.verify(artifact)
    return artifact


def copy_of(source: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copytree(source / "home", folder / "home")
    shutil.copyfile(source / "small.toml", folder / "small.toml")
    return folder


@pytest.fixture(scope="module")
def undisturbed(
    prepared_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """A finished run, and the seconds it took."""
    folder = copy_of(prepared_home, tmp_path_factory.mktemp("straight") / "run")
    began = time.monotonic()
    finish(folder)
    return folder, time.monotonic() - began


def same(one: Artifact, two: Artifact) -> None:
    """Every file of both: weights, optimizer state, position, metrics."""
    assert one.files() == two.files()
    for name in one.files():
        assert one.file(name).read_bytes() == two.file(name).read_bytes(), name
    assert one.digest == two.digest


def samples_of(artifact: Artifact) -> list[int]:
    rows = [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]
    spans = [row["samples"] for row in rows if row["event"] == "step"]
    return [index for first, last in spans for index in range(first, last + 1)]


def kill_until_done(folder: Path, took: float, kills: int, seed: int) -> int:
    """SIGKILL at random moments of `kills` attempts, then let it finish."""
    rng = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = start(folder)
        try:
            process.wait(timeout=rng.uniform(0.35, 1.0) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            hit += 1
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        for artifact in Registry.open(folder / "home").list():
            Registry.open(folder / "home").verify(artifact)
    finish(folder)
    return hit


def test_killed_runs_end_as_the_undisturbed_one(
    undisturbed: tuple[Path, float], prepared_home: Path, tmp_path: Path
) -> None:
    straight, took = undisturbed
    folder = copy_of(prepared_home, tmp_path / "killed")
    assert kill_until_done(folder, took, kills=3, seed=1) >= 1
    same(finished(straight), finished(folder))
    # 24 steps of 8 samples, in order, none twice and none left out
    assert samples_of(finished(folder)) == list(range(24 * 8))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_twenty_kills(
    undisturbed: tuple[Path, float], prepared_home: Path, tmp_path: Path, seed: int
) -> None:
    straight, took = undisturbed
    hit = 0
    for attempt in range(5):
        folder = copy_of(prepared_home, tmp_path / f"killed{attempt}")
        hit += kill_until_done(folder, took, kills=2, seed=100 * seed + attempt)
        same(finished(straight), finished(folder))
    assert hit >= 5


def test_kill_while_saving_leaves_no_half_checkpoint(
    undisturbed: tuple[Path, float], prepared_home: Path, tmp_path: Path
) -> None:
    """Killed at the moment a staging directory is there: between its making and its rename."""
    straight, _ = undisturbed
    folder = copy_of(prepared_home, tmp_path / "saving")
    staging = folder / "home" / "staging"
    for number in range(2):
        process = start(folder)
        while process.poll() is None and not (staging.exists() and any(staging.iterdir())):
            time.sleep(0.0005)
        time.sleep(0.002 * number)
        process.kill()
        process.communicate()
        registry = Registry.open(folder / "home")
        for artifact in registry.list():
            registry.verify(artifact)
    finish(folder)
    same(finished(straight), finished(folder))
    assert not list(staging.iterdir())


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_say_how_to_go_on(
    undisturbed: tuple[Path, float], prepared_home: Path, tmp_path: Path, signum: int, code: int
) -> None:
    straight, _ = undisturbed
    folder = copy_of(prepared_home, tmp_path / "stopped")
    metrics = folder / "home" / "runs"
    # checkpoints only at the end, so that what is saved is saved by the signal
    process = start(folder, "--set", "pretrain.checkpoint_every=1000 steps")
    while process.poll() is None and not _steps_done(metrics, 2):
        time.sleep(0.002)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.fail("the run ended before the signal: it is too short for this test")
    assert process.returncode == code, err
    assert "bc2 pretrain small.toml" in err
    saved = Registry.open(folder / "home").list("checkpoint")
    assert len(saved) == 1
    assert not saved[0].finished
    finish(folder)
    same(finished(straight), finished(folder))


def _steps_done(runs: Path, steps: int) -> bool:
    return any(
        path.read_text().count('"event": "step"') >= steps for path in runs.glob("*/metrics.jsonl")
    )


def test_the_second_time_finds_everything_done(undisturbed: tuple[Path, float]) -> None:
    straight, _ = undisturbed
    before = finished(straight)
    assert finish(straight) == before.ref
    assert finished(straight).created == before.created


def test_fresh_trains_again_and_gets_the_same_bits(
    undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    straight, _ = undisturbed
    folder = copy_of(straight, tmp_path / "fresh")
    ref = finish(folder, "--fresh")
    assert ref == finished(straight).ref


def test_two_processes_cannot_go_on_with_one_run(prepared_home: Path, tmp_path: Path) -> None:
    folder = copy_of(prepared_home, tmp_path / "two")
    first = start(folder)
    while first.poll() is None and not _steps_done(folder / "home" / "runs", 1):
        time.sleep(0.002)
    second = start(folder)
    _, err = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert second.returncode in (0, 1)
    if second.returncode == 1:
        assert "another process is training" in err


def test_a_changed_recipe_is_another_run(undisturbed: tuple[Path, float], tmp_path: Path) -> None:
    straight, _ = undisturbed
    folder = copy_of(straight, tmp_path / "changed")
    ref = finish(folder, "--set", "pretrain.seed=7", "--set", "pretrain.length=6 steps")
    assert ref != finished(straight).ref
    assert len(Registry.open(folder / "home").list("checkpoint")) >= 2
