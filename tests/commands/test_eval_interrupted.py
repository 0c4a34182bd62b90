"""`bc2 eval` that is killed, stopped or spread over ranks: the same scores, to the byte."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import torch
import warmed

from bc2.errors import RunFailed
from bc2.registry import Artifact, Registry
from bc2.sandbox.run import Sandbox

pytestmark = pytest.mark.usefixtures("offline")

Bc2 = Callable[..., Any]

#: A suite that is scored, and one that is continued whatever the answers are.
SCORED, CONTINUED = "mmlu", "bbh_fewshot"


class Started:
    """``bc2 eval`` as a process with its own session."""

    def __init__(self, home: Path, *args: object, err: str = "err", program: str = ""):
        self.home = home
        self._err = home.parent / f"{home.name}.{err}"
        # Commands are forked from a process that was started without it; there is no connection
        # to make all the same, since all files are given.
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        how = ("-c", program) if program else ("-m", "bc2")
        with self._err.open("wb") as stream:
            self.process = warmed.Popen(
                [sys.executable, "-P", *how, "eval", *map(str, args)],
                env={**environment, "BC2_HOME": str(home)},
                stdout=stream, stderr=stream, start_new_session=True, children=True,
            )  # fmt: skip

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self) -> int:
        return int(self.process.wait(timeout=300))

    def wait_until(self, answers: int) -> None:
        """Until so many samples are answered."""
        deadline = time.monotonic() + 200
        while answered(self.home) < answers:
            assert self.process.poll() is None, f"it ended before that: {self.err}"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def ranks(self) -> list[int]:
        """Processes that it started; they have sessions of their own."""
        pid = self.process.pid
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def kill(self, signum: int = signal.SIGKILL) -> int:
        os.kill(self.process.pid, signum)
        return self.wait()

    def kill_all(self) -> None:
        ranks = self.ranks()
        assert self.kill() == -signal.SIGKILL
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def answered(home: Path) -> int:
    """Samples in the journal of the evaluation that is under way."""
    lines = 0
    for path in home.glob("work/scores-*/work/answers/*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # it has ended
            lines += path.read_bytes().count(b"\n")
    return lines


def files_of(scores: Artifact) -> dict[str, Any]:
    """What was measured, by file."""
    files = {path.name: path.read_bytes() for path in scores.path.glob("samples/*")}
    files |= {name: (scores.path / name).read_bytes() for name in ("scores.json", "scores.csv")}
    return files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of its own with a model."""
    made_checkpoints.register(tmp_path / "own", "tiny", made_checkpoints.drawn())
    return tmp_path / "own"


@pytest.fixture(scope="module")
def whole(eval_home: Path) -> dict[str, Artifact]:
    """The scores of evaluations that nothing interrupted, by suite; made when first needed."""
    return {}


@pytest.fixture
def uninterrupted(
    bc2: Bc2, bench_data: Path, eval_home: Path, whole: dict[str, Artifact]
) -> Callable[[str], Artifact]:
    def find(suite: str) -> Artifact:
        if suite not in whole:
            done = bc2("eval", "tiny", "--bench", suite, "--data", bench_data, "--quiet")
            assert done.code == 0, done.err
            whole[suite] = Registry.open(eval_home).resolve(done.out.strip())
        return whole[suite]

    return find


def the_scores(home: Path) -> list[Artifact]:
    return list(Registry.open(home).list("scores"))


def nothing_half_made(home: Path) -> None:
    assert the_scores(home) == []
    assert not any((home / "artifacts").glob("scores/*/*/manifest.json"))


@pytest.mark.parametrize(
    ("suite", "moments", "nproc"),
    [
        (SCORED, (41,), 1),
        (CONTINUED, (17,), 1),
        (SCORED, (11,), 2),
        pytest.param(SCORED, (1, 30, 60, 90), 1, marks=pytest.mark.slow),
        pytest.param(CONTINUED, (1, 9, 33, 60, 75), 1, marks=pytest.mark.slow),
        pytest.param(SCORED, (1, 30, 60), 2, marks=pytest.mark.slow),
        pytest.param(CONTINUED, (1, 9, 33, 70), 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_evaluation_goes_on(
    home: Path, bench_data: Path, uninterrupted: Any, suite: str, moments: tuple[int, ...],
    nproc: int,
) -> None:  # fmt: skip
    command = ("tiny", "--bench", suite, "--data", bench_data, "--nproc", nproc)
    for number, moment in enumerate(moments):
        run = Started(home, *command)
        run.wait_until(max(moment, answered(home) + 1))
        run.kill_all()
        assert ("going on: " in run.err) == (number > 0), run.err
        nothing_half_made(home)
    before = answered(home)
    last = Started(home, *command)
    assert last.wait() == 0, last.err
    assert f"going on: {before:,} of" in last.err
    (found,) = the_scores(home)
    assert files_of(found) == files_of(uninterrupted(suite))
    assert found.manifest.key == uninterrupted(suite).manifest.key
    Registry.open(home).verify(found)
    # The next start is found by what it made, and answers nothing.
    again = Started(home, *command)
    assert again.wait() == 0, again.err
    assert "is registered already" in again.err
    assert the_scores(home) == [found]


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_how_to_go_on(
    home: Path, bench_data: Path, signum: int, code: int, nproc: int
) -> None:
    run = Started(home, "tiny", "--bench", SCORED, "--data", bench_data, "--nproc", nproc)
    run.wait_until(3)
    assert run.kill(signum) == code, run.err
    assert run.err.count("run the same command again") == 1
    assert "checkpoint, if there is one" not in run.err
    assert "Traceback" not in run.err
    nothing_half_made(home)
    assert answered(home) >= 3


def test_ranks_give_the_same_scores(home: Path, bench_data: Path, uninterrupted: Any) -> None:
    command = ("tiny", "--bench", SCORED, "--data", bench_data, "--nproc", 2)
    run = Started(home, *command)
    assert run.wait() == 0, run.err
    (found,) = the_scores(home)
    one = uninterrupted(SCORED)
    assert found.key == one.key
    names = sorted(path.name for path in one.path.glob("samples/*"))
    assert len(names) == 57
    for name in names:
        ours, theirs = samples(found, name), samples(one, name)
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["acc"] == other["acc"]
            assert mine["prompt_hash"] == other["prompt_hash"]
            assert log_probs(mine) == pytest.approx(log_probs(other), abs=1e-5)


def test_ranks_measure_texts_as_one_process_does(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"text {n} " * (n % 9)}) + "\n" for n in range(200))
    )
    command = ("tiny", "--bench", "text", "--data", path, "--fresh")
    for more in [(), ("--nproc", 2)]:
        run = Started(home, *command, *more)
        assert run.wait() == 0, run.err
    found = Registry(home).list("scores")
    assert len({one.key for one in found}) == 1
    first, *others = [json.loads(one.file("text.json").read_bytes()) for one in found]
    assert first["total"]["documents"] == 200 - 200 // 9 - 1
    for other in others:
        assert other["total"] == pytest.approx(first["total"], rel=1e-6)


def samples(scores: Artifact, name: str) -> list[dict[str, Any]]:
    lines = (scores.path / "samples" / name).read_text().splitlines()
    return [json.loads(line) for line in lines]


def log_probs(sample: dict[str, Any]) -> list[float]:
    return [float(log_prob) for ((log_prob, _),) in sample["resps"]]


@pytest.mark.slow
def test_ranks_go_on_where_one_process_was(
    home: Path, bench_data: Path, uninterrupted: Any
) -> None:
    command = ("tiny", "--bench", CONTINUED, "--data", bench_data)
    run = Started(home, *command)
    run.wait_until(30)
    run.kill()
    last = Started(home, *command, "--nproc", 2)
    assert last.wait() == 0, last.err
    assert "going on: " in last.err
    (found,) = the_scores(home)
    assert files_of(found) == files_of(uninterrupted(CONTINUED))


def test_a_rank_that_fails_is_one_message(home: Path, bench_data: Path) -> None:
    path = Registry.open(home).resolve("checkpoint/tiny").path / "model.safetensors"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    run = Started(home, "tiny", "--bench", "medqa", "--data", bench_data, "--nproc", 2)
    assert run.wait() == 5, run.err
    assert run.err.count("error: ") == 1
    assert "model.safetensors" in run.err
    assert "Traceback" not in run.err


@pytest.mark.slow
def test_a_suite_that_fails_in_ranks_does_not_keep_others_from_being_tried(
    home: Path, bench_data: Path
) -> None:
    broken = made_checkpoints.drawn()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    made_checkpoints.register(home, "broken", broken)
    command = ("broken", "--bench", "gsm8k,medqa", "--data", bench_data, "--nproc", 2)
    run = Started(home, *command)
    assert run.wait() == 1
    assert run.err.count("error: ") == run.err.count("warning: ") == 1
    assert "gsm8k:0" in run.err
    assert "bc2_medqa:0" in run.err
    assert run.err.count("another number of rows than MedQA") == 1


def test_a_rank_that_is_killed(home: Path, bench_data: Path) -> None:
    run = Started(home, "tiny", "--bench", SCORED, "--data", bench_data, "--nproc", 2)
    run.wait_until(3)
    os.kill(run.ranks()[-1], signal.SIGKILL)
    assert run.wait() == 1
    assert run.err.count("error: ") == 1
    assert "was killed by SIGKILL" in run.err
    assert "--max-restarts" not in run.err
    nothing_half_made(home)


@pytest.mark.slow
def test_processes_that_evaluate_the_same_at_once(
    home: Path, bench_data: Path, uninterrupted: Any
) -> None:
    command = ("tiny", "--bench", SCORED, "--data", bench_data)
    runs = [Started(home, *command, err=f"{number}") for number in range(3)]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert sum("is registered already" in run.err for run in runs) == 2
    (found,) = the_scores(home)
    assert files_of(found) == files_of(uninterrupted(SCORED))


RIGHT_PROGRAMS = """
import sys
from bc2.generate.engine import InferenceEngine
from bc2.generate.requests import Continuation, Generated

def generate(self, requests, **_):
    for index, request in enumerate(requests):
        number = request.where.partition(":")[2]
        text = f"    import time\\n    time.sleep(0.2)\\n    return x + {number}\\n"
        yield Generated(index, request, [Continuation([1], "stop_id", data=text.encode())], 0)

InferenceEngine.generate = generate
from bc2.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_programs_that_were_run_are_not_run_again(home: Path, bench_data: Path) -> None:
    try:
        Sandbox.open().close()
    except RunFailed as error:
        pytest.skip(str(error))
    command = ("tiny", "--bench", "humaneval", "--allow-code", "--data", bench_data)

    def verdicts() -> bytes:
        return b"".join(path.read_bytes() for path in home.glob("work/*/work/verdicts/*"))

    run = Started(home, *command, program=RIGHT_PROGRAMS)
    while verdicts().count(b"\n") < 3:
        assert run.process.poll() is None, run.err
        time.sleep(0.01)
    run.kill()
    assert 3 <= verdicts().count(b"\n") < 10
    nothing_half_made(home)
    # Had it to be answered or run again, the model would fail all of them.
    again = Started(home, *command, "--json")
    assert again.wait() == 0, again.err
    assert "going on: 10 of 10 samples" in again.err
    (found,) = the_scores(home)
    assert found.manifest.facts["score"] == 1.0


def test_fresh_drops_what_is_half_done(home: Path, bench_data: Path, uninterrupted: Any) -> None:
    command = ("tiny", "--bench", SCORED, "--data", bench_data)
    run = Started(home, *command)
    run.wait_until(20)
    run.kill()
    again = Started(home, *command, "--fresh")
    assert again.wait() == 0, again.err
    assert "going on: " not in again.err
    assert files_of(the_scores(home)[0]) == files_of(uninterrupted(SCORED))
