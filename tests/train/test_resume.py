"""A run that is killed and goes on is, bit for bit, the run that was not.

Most of a short run's time is imports, so nothing here is killed by the clock alone: a
test waits until a process trains, by its timing.jsonl, and counts the kills that it
died of. One thread a process: two that share busy cores wait for each other.
"""

from __future__ import annotations

import hashlib
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
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import warmed

from bc2.files import lock_directory
from bc2.registry import Artifact, Registry

BC2 = [sys.executable, "-P", "-m", "bc2"]
PRETRAIN = ["pretrain", "small.toml", "--json"]
STEPS, EVERY, ROWS = 60, 3, 8
LONG = [
    "--set", f"pretrain.length={STEPS} steps",
    "--set", f"pretrain.checkpoint_every={EVERY} steps",
    "--set", "pretrain.sample_tokens=4",
]  # fmt: skip
BF16 = ["--set", "pretrain.precision=bf16"]
UNSAVED = ["--set", "pretrain.checkpoint_every=1000 steps"]

Process = subprocess.Popen[str]


def launch(folder: Path, command: list[str]) -> Process:
    environment = {**os.environ, "BC2_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return warmed.Popen(
        command, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start(folder: Path, *extra: str) -> Process:
    return launch(folder, [*BC2, *PRETRAIN, *LONG, *extra])


def result(process: Process) -> dict[str, Any]:
    """What a process that ends well says about the artifact."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def finish(folder: Path, *extra: str) -> dict[str, Any]:
    return result(start(folder, *extra))


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


def ends(folder: Path) -> set[str]:
    """The digests of the finished checkpoints."""
    checkpoints = Registry.open(folder / "home").list("checkpoint")
    return {artifact.digest for artifact in checkpoints if artifact.finished}


def verify_all(folder: Path) -> None:
    """Every registered artifact is what was published, and the inputs are still among them."""
    registry = Registry.open(folder / "home")
    artifacts = registry.list()
    assert {artifact.kind for artifact in artifacts} >= {"corpus", "tokenizer", "tokens"}
    for artifact in artifacts:
        registry.verify(artifact)


def same(one: Artifact, two: Artifact) -> None:
    """Every file of both: weights, optimizer state, position, metrics."""
    assert one.files() == two.files()
    for name in one.files():
        assert one.file(name).read_bytes() == two.file(name).read_bytes(), name
    assert one.digest == two.digest


def metrics_of(artifact: Artifact, event: str) -> list[dict[str, Any]]:
    rows = map(json.loads, artifact.file("metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == event]


def samples_of(artifact: Artifact) -> list[int]:
    spans = [row["samples"] for row in metrics_of(artifact, "step")]
    return [index for first, last in spans for index in range(first, last + 1)]


def timing(folder: Path, *events: str) -> list[dict[str, Any]]:
    """The rows of timing.jsonl, all attempts in order."""
    files = (folder / "home" / "runs").glob("*/timing.jsonl")
    lines = chain.from_iterable(path.read_text().splitlines(keepends=True) for path in files)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["event"] in events]


def attempts(folder: Path) -> list[tuple[str, int]]:
    """How and from which step each attempt began."""
    return [(row["event"], row["step"]) for row in timing(folder, "start", "resume")]


def wait_until(process: Process, holds: Callable[[], bool], poll: float = 0.001) -> bool:
    """Whether something came to hold while the process was alive."""
    end = time.monotonic() + 120
    while process.poll() is None:
        if holds():
            return True
        assert time.monotonic() < end, "the process neither trains nor ends"
        time.sleep(poll)
    return False


def wait_for_step(process: Process, folder: Path, before: int, step: int) -> bool:
    """Wait until an attempt made `step` itself; `before`: step rows when it was launched."""
    return wait_until(
        process, lambda: any(row["step"] >= step for row in timing(folder, "step")[before:])
    )


@dataclass(frozen=True)
class Hit:
    """A process that a SIGKILL met in training."""

    step: int
    """The last step that it had made."""
    saving: bool
    """Whether it was writing a checkpoint: its staging directory is there."""


def kill(
    folder: Path, *extra: str, step: int = 0, delay: float = 0, saves: bool = False
) -> Hit | None:
    """SIGKILL an attempt `delay` seconds after it made its first step from `step` on.

    Args:
        saves: wait further until it writes a checkpoint.

    Returns:
        None if it had trained to the end before that.
    """
    before = len(timing(folder, "step"))
    process = start(folder, *extra)
    if wait_for_step(process, folder, before, step):
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            if not saves or wait_until(process, partial(saving, process, folder), poll=0.0005):
                process.kill()
    hit = dead(process, folder)
    # a finished one: it was drawing curves, not training
    return None if ends(folder) else hit


def dead(process: Process, folder: Path) -> Hit | None:
    """Whether a process died of SIGKILL, and what it left; None if it ended well before."""
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, err
    verify_all(folder)
    made = timing(folder, "step")[-1]["step"]
    return Hit(made, saving=bool(staged(process, folder)))


def staged(process: Process, folder: Path) -> list[Path]:
    """The staging directories of a process, alive or dead."""
    return list((folder / "home" / "staging").glob(f"{process.pid}-*"))


def interrupt(folder: Path, process: Process, signum: int, step: int) -> str:
    """Send a signal after `step`; the run must save, leave, and say the command to go on."""
    before = len(timing(folder, "step"))
    assert wait_for_step(process, folder, before, step), "the run ended before the signal"
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    (saved,) = [
        artifact
        for artifact in Registry.open(folder / "home").list("checkpoint")
        if artifact.position and artifact.position.step == timing(folder, "stop")[-1]["step"]
    ]
    assert not saved.finished
    assert timing(folder, "step")[-1]["step"] == timing(folder, "stop")[-1]["step"] < STEPS
    _, told, command = err.partition("go on with: ")
    assert told, err
    return command.strip()


@dataclass(frozen=True)
class Straight:
    """A finished run that nothing disturbed."""

    folder: Path
    artifact: Artifact
    span: float
    """Seconds from its first step's row to its last row of timing.jsonl."""


def straight(folder: Path, *extra: str) -> Straight:
    return measured(folder, start(folder, *extra))


def measured(folder: Path, process: Process) -> Straight:
    assert result(process)["made"] is True
    assert attempts(folder) == [("start", 0)]
    steps, evaluations = timing(folder, "step"), timing(folder, "eval")
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    return Straight(folder, finished(folder), evaluations[-1]["time"] - steps[0]["time"])


@pytest.fixture(scope="module")
def undisturbed(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return straight(copy_of(prepared_home, tmp_path_factory.mktemp("straight") / "run"))


def ended_as(one: Straight, folder: Path) -> None:
    """A disturbed run is the undisturbed one, and saw each sample once and in order."""
    artifact = finished(folder)
    same(one.artifact, artifact)
    assert samples_of(artifact) == list(range(STEPS * ROWS))


def test_killed_runs_end_as_the_undisturbed_one(
    undisturbed: Straight, prepared_home: Path, tmp_path: Path
) -> None:
    """One kill in each third of a run, at a random step; the second one while it saves."""
    rng = random.Random(1)
    folder = copy_of(prepared_home, tmp_path / "killed")
    third, step_s = STEPS // 3, undisturbed.span / STEPS
    hits: list[Hit] = []

    def meet(part: int, *, saves: bool = False) -> Hit:
        # not in the last steps of a third: the kill takes a moment to be sent
        step = part * third + rng.randint(1, third - 8)
        hit = kill(folder, step=step, delay=rng.uniform(0, 2 * step_s), saves=saves)
        assert hit is not None, f"the run ended before it was killed after step {step}"
        assert step <= hit.step < STEPS
        hits.append(hit)
        return hit

    meet(0)
    # once more for a kill that came after the rename
    assert any(meet(1, saves=True).saving for _ in range(4))
    meet(2)
    print(*hits, sep="\n")
    assert finish(folder)["made"] is True
    began = attempts(folder)
    assert len(began) == len(hits) + 1 >= 4
    # each goes on from one of the last two checkpoints before the kill
    assert [event for event, _ in began[2:]] == ["resume"] * (len(hits) - 1)
    assert third - 2 * EVERY <= began[2][1] <= hits[1].step
    assert 2 * third - 2 * EVERY <= began[-1][1] <= hits[-1].step
    ended_as(undisturbed, folder)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], BF16], ids=["fp32", "bf16"])
def test_many_kills(
    undisturbed: Straight, prepared_home: Path, tmp_path: Path, extra: list[str]
) -> None:
    """Four a run, at moments uniform over equal shares of what is left; every other in a save."""
    plain = straight(copy_of(prepared_home, tmp_path / "plain"), *extra) if extra else undisturbed
    assert plain.artifact.manifest.facts["precision"] == ("bf16" if extra else "fp32")
    rng = random.Random(len(extra))
    hits: list[Hit] = []
    runs = 0
    while len(hits) < 12:
        assert runs < 8, f"too few kills hit: {hits}"
        folder = copy_of(prepared_home, tmp_path / f"killed{runs}")
        for number in range(4):
            share = (1 - reached(folder) / STEPS) / (4 - number)
            delay = rng.uniform(0, share * plain.span)
            hit = kill(folder, *extra, delay=delay, saves=number % 2 == 1)
            if hit is None:
                break
            hits.append(hit)
        finish(folder, *extra)
        ended_as(plain, folder)
        runs += 1
    print(f"{len(hits)} hits in {runs} runs of {plain.span:.2f} s:", *hits, sep="\n")
    assert sum(hit.saving for hit in hits) >= 3
    assert len({hit.step for hit in hits}) >= 6
    assert min(hit.step for hit in hits) < STEPS / 2 < max(hit.step for hit in hits)


def reached(folder: Path) -> int:
    """The step of the furthest checkpoint, from which an attempt would go on."""
    checkpoints = Registry.open(folder / "home").list("checkpoint")
    return max((made.position.step for made in checkpoints if made.position), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True])
def test_kill_while_saving_leaves_no_half_checkpoint(
    undisturbed: Straight, prepared_home: Path, tmp_path: Path, last: bool
) -> None:
    """Killed between the making of a staging directory and its rename: any, or the last one."""
    for number in range(8):
        folder = copy_of(prepared_home, tmp_path / f"saving{number}")
        process = start(folder)
        if wait_until(process, partial(saving, process, folder, last=last), poll=0.0005):
            process.kill()
        hit = dead(process, folder)
        if hit is not None and hit.saving:
            break
    else:
        pytest.fail("no kill hit a save")
    assert process.returncode == -signal.SIGKILL
    (left,) = staged(process, folder)
    assert ends(folder) == set()
    assert finish(folder)["made"] is True
    ended_as(undisturbed, folder)
    assert not left.exists()
    assert not list((folder / "home" / "staging").iterdir())


def saving(process: Process, folder: Path, *, last: bool = False) -> bool:
    """Whether a process writes a checkpoint now; `last`: the finished one."""
    if not last:
        return bool(staged(process, folder))
    for path in staged(process, folder):
        try:
            return bool(json.loads((path / "trainer.json").read_text())["step"] == STEPS)
        except (FileNotFoundError, ValueError):
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_say_how_to_go_on(
    undisturbed: Straight, prepared_home: Path, tmp_path: Path, signum: int
) -> None:
    folder = copy_of(prepared_home, tmp_path / "stopped")
    # checkpoints only at the end, so that what is saved is saved by the signal
    command = interrupt(folder, start(folder, *UNSAVED), signum, step=2)
    assert shlex.split(command) == ["bc2", *PRETRAIN[:-1], *LONG, *UNSAVED]
    assert len(Registry.open(folder / "home").list("checkpoint")) == 1
    stopped = timing(folder, "stop")[-1]["step"]
    assert finish(folder)["made"] is True
    assert attempts(folder) == [("start", 0), ("resume", stopped)]
    ended_as(undisturbed, folder)


@pytest.fixture(scope="module")
def afterwards(
    undisturbed: Straight, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Path, Process]]]:
    """Three more commands, each at its own copy of the finished run; at once, to save time."""
    commands: dict[str, list[str]] = {
        "again": [],
        "fresh": ["--fresh"],
        "changed": ["--set", "pretrain.seed=7", "--set", "pretrain.length=6 steps"],
    }
    parent = tmp_path_factory.mktemp("afterwards")
    folders = {name: copy_of(undisturbed.folder, parent / name) for name in commands}
    started = {name: (folders[name], start(folders[name], *commands[name])) for name in commands}
    yield started
    for _, process in started.values():
        process.kill()
        process.communicate()


def test_the_second_time_finds_everything_done(
    undisturbed: Straight, afterwards: dict[str, tuple[Path, Process]]
) -> None:
    folder, process = afterwards["again"]
    answer = result(process)
    assert (answer["made"], answer["digest"]) == (False, undisturbed.artifact.digest)
    assert attempts(folder) == [("start", 0)]


def test_fresh_trains_again_and_gets_the_same_bits(
    undisturbed: Straight, afterwards: dict[str, tuple[Path, Process]]
) -> None:
    folder, process = afterwards["fresh"]
    assert result(process)["made"] is True
    assert attempts(folder) == [("start", 0), ("start", 0)]
    assert len(timing(folder, "step")) == 2 * STEPS
    ended_as(undisturbed, folder)


def test_a_changed_recipe_is_another_run(
    undisturbed: Straight, afterwards: dict[str, tuple[Path, Process]]
) -> None:
    folder, process = afterwards["changed"]
    answer = result(process)
    assert answer["made"] is True
    made = finished(folder)
    assert made.digest == answer["digest"]
    assert made.key != undisturbed.artifact.key
    assert attempts(folder) == [("start", 0), ("start", 0)]
    assert ends(folder) == {made.digest, undisturbed.artifact.digest}


def test_an_interrupted_fresh_run_goes_on(undisturbed: Straight, tmp_path: Path) -> None:
    """Although a finished one is there, by the command that is printed."""
    folder = copy_of(undisturbed.folder, tmp_path / "fresh")
    # checkpoints only at the end, so that what is saved is saved by the signal
    process = start(folder, *UNSAVED, "--fresh")
    command = shlex.split(interrupt(folder, process, signal.SIGINT, step=4))
    stopped = timing(folder, "stop")[-1]["step"]
    assert command == ["bc2", *PRETRAIN[:-1], *LONG, *UNSAVED]
    answer = result(launch(folder, [*BC2, *command[1:], "--json"]))
    assert (answer["made"], answer["digest"]) == (True, undisturbed.artifact.digest)
    began = [("start", 0), ("start", 0), ("resume", stopped)]
    assert attempts(folder) == began
    ended_as(undisturbed, folder)
    answer = finish(folder)
    assert (answer["made"], answer["digest"]) == (False, undisturbed.artifact.digest)
    assert attempts(folder) == began


@pytest.mark.slow
@pytest.mark.parametrize(("step", "event"), [(1, "start"), (2 * EVERY + 2, "resume")])
def test_a_killed_fresh_run_goes_on(
    undisturbed: Straight, tmp_path: Path, step: int, event: str
) -> None:
    """From the start if it had saved nothing itself, never from what was there before."""
    folder = copy_of(undisturbed.folder, tmp_path / "fresh")
    before = len(timing(folder, "step"))
    process = start(folder, "--fresh", *(UNSAVED if event == "start" else []))
    assert wait_for_step(process, folder, before, step)
    process.kill()
    hit = dead(process, folder)
    assert hit is not None
    answer = finish(folder)
    assert (answer["made"], answer["digest"]) == (True, undisturbed.artifact.digest)
    began = attempts(folder)
    assert [event for event, _ in began] == ["start", "start", event]
    # when a save begins, the one before has ended
    at = began[2][1]
    assert at == 0 if event == "start" else EVERY <= at <= hit.step
    ended_as(undisturbed, folder)
    assert finish(folder)["made"] is False
    assert attempts(folder) == began


def contents(home: Path) -> dict[str, str | None]:
    """Every name below a home, and each file's digest."""
    return {
        str(path.relative_to(home)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        )
        for path in home.rglob("*")
    }


def test_two_processes_cannot_go_on_with_one_run(
    undisturbed: Straight, prepared_home: Path, tmp_path: Path
) -> None:
    """The run is known by its key: what another home made of the same recipe tells it."""
    folder = copy_of(prepared_home, tmp_path / "two")
    registry = Registry.open(folder / "home")
    assert registry.list("checkpoint") == []
    lock = registry.work / f"pretrain-{undisturbed.artifact.key}"
    lock.mkdir(parents=True)
    before = contents(registry.home)
    with lock_directory(lock) as mine:
        assert mine
        process = start(folder)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "another process is training" in err
    assert contents(registry.home) == before


#: Makes the training loss of some samples NaN and signals itself at others, both by index.
DRIVER = """\
import json, os, sys
import torch
from bc2.__main__ import main
from bc2.data.loader import Loader
from bc2.train.objective import Loss
from bc2.train.pretrain.next_token import NextToken

poisoned, at, signum, *arguments = sys.argv[1:]
poisoned, at, signum = json.loads(poisoned), int(at), int(signum)
make, call = Loader.batch, NextToken.__call__
samples = {}

def batch(self, first, count):
    made = make(self, first, count)
    samples[made.tokens.tobytes()] = range(first, first + count)
    return made

def objective(self, model, batch, clock=None):
    loss = call(self, model, batch, clock)
    if not torch.is_grad_enabled():
        return loss
    mine = samples[batch.tokens.tobytes()]
    if at in mine:
        os.kill(os.getpid(), signum)
    if any(sample in mine for sample in poisoned):
        return Loss(loss.total * float("nan"), loss.sums)
    return loss

Loader.batch, NextToken.__call__ = batch, objective
main(arguments)
"""

#: First samples of the poisoned batches, counted in steps: the first is met in step 23 and
#: rolled back to step 18; so is the second, in step 21 then; the third, in step 26, to 24.
BAD = [22, 25, 33]
ROLLBACK_STEPS = 40
ROLLBACK = [
    "--set", f"pretrain.length={ROLLBACK_STEPS} steps",
    "--set", "pretrain.checkpoint_every=6 steps",
    "--set", 'pretrain.guard.action="rollback"',
    "--set", "pretrain.sample_tokens=4",
]  # fmt: skip


def drive(folder: Path, at: float = -1, signum: int = 0) -> Process:
    """Train on poisoned samples; `signum` meets it in the batch `at` (in steps of samples).

    22.5 is the second micro-batch of the step that begins at 22: after it the step is made.
    """
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    plan = [json.dumps([ROWS * bad for bad in BAD]), str(int(ROWS * at)), str(int(signum))]
    return launch(
        folder, [sys.executable, "-P", str(driver), *plan, *PRETRAIN, *ROLLBACK]
    )  # fmt: skip


def disturb(folder: Path, at: float, signum: int) -> None:
    process = drive(folder, at, signum)
    _, err = process.communicate(timeout=120)
    died = -signum if signum == signal.SIGKILL else 128 + signum
    assert process.returncode == died, err
    verify_all(folder)


@pytest.fixture(scope="module")
def rolled_back(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The finished checkpoint of a run with rollbacks that nothing else disturbed."""
    folder = copy_of(prepared_home, tmp_path_factory.mktemp("rollback") / "run")
    assert result(drive(folder))["made"] is True
    assert [row["step"] for row in timing(folder, "bad")] == [23, 21, 26]
    artifact = finished(folder)
    rows = [(row["from_step"], row["step"], row["samples"]) for row in rollbacks_of(artifact)]
    assert rows == [(21, 18, [144, 207]), (26, 24, [256, 271])]
    kept = [*range(144), *range(208, 256), *range(272, 400)]
    assert len(kept) == ROLLBACK_STEPS * ROWS
    assert samples_of(artifact) == kept
    return artifact


def rollbacks_of(artifact: Artifact) -> list[dict[str, Any]]:
    return metrics_of(artifact, "rollback")


def test_disturbed_rollbacks_end_as_undisturbed_ones(
    rolled_back: Artifact, prepared_home: Path, tmp_path: Path
) -> None:
    """Saved off schedule in a bad step, which is abandoned, and killed in the next bad one."""
    folder = copy_of(prepared_home, tmp_path / "disturbed")
    disturb(folder, 22, signal.SIGTERM)
    disturb(folder, 25, signal.SIGKILL)
    assert result(drive(folder))["made"] is True
    assert attempts(folder) == [("start", 0), ("resume", 22), ("resume", 22)]
    same(rolled_back, finished(folder))


@pytest.mark.slow
def test_a_signal_after_a_rollback_saves_what_is_gone_on_from(
    rolled_back: Artifact, prepared_home: Path, tmp_path: Path
) -> None:
    """Step 19 after a rollback is further than step 22 before it."""
    folder = copy_of(prepared_home, tmp_path / "disturbed")
    disturb(folder, 22, signal.SIGTERM)
    disturb(folder, 24, signal.SIGTERM)
    assert timing(folder, "stop")[-1]["step"] == 19
    assert result(drive(folder))["made"] is True
    assert attempts(folder) == [("start", 0), ("resume", 22), ("resume", 19)]
    same(rolled_back, finished(folder))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("at", [17, 17.5, 22, 22.5, 23, 25.5, 26, 33, 33.5, 34])
def test_one_disturbance_of_a_rollback(
    rolled_back: Artifact, prepared_home: Path, tmp_path: Path, at: float, signum: int
) -> None:
    folder = copy_of(prepared_home, tmp_path / "disturbed")
    disturb(folder, at, signum)
    assert result(drive(folder))["made"] is True
    assert [event for event, _ in attempts(folder)] == ["start", "resume"]
    same(rolled_back, finished(folder))
