"""Contenders take turns, sizes are chosen, and what fails costs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from bc2.bench.generation.job import PARTS, Job
from bc2.bench.generation.measure import GenerationPlan, announce_generation, run_generation
from bc2.bench.generation.parts import LARGE_VOCABULARY, WAYS
from bc2.bench.generation.results import GenerationResult
from bc2.bench.generation.work import ScoredQuestion, Work
from bc2.console import progress
from bc2.errors import RunFailed
from bc2.generate.engine_config import EngineConfig
from bc2.model.model_config import ModelConfig
from bc2.train.worker_process import WorkerFailed

MODEL = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=4
)  # fmt: skip
WORK = Work(
    prompts=[[1, 2], [3], [4]],
    answers=[5, 6, 9],
    questions=[ScoredQuestion(context=[1] * 10, choices=[[1], [2]])],
    shots=5,
)
JOB = Job(
    kind="bc2", model=MODEL, seed=0, precision="fp32", device="cpu", engine=EngineConfig(),
    work="",
)  # fmt: skip
HEADER: dict[str, Any] = {
    "id": "x", "time": "t", "recipe": {}, "machine": {}, "settings": {}
}  # fmt: skip

#: Seconds that a fake contender takes for one token.
PACE = {"bc2": 1.0, "hf-static": 3.0, "hf-sorted": 2.0, "hf-continuous": 2.5}


def plan(**changes: Any) -> GenerationPlan:
    fields = {
        "parts": ("decode",), "contenders": ("bc2", "hf-static", "hf-continuous"),
        "precisions": ("fp32",), "sizes": (2, 8, 4), "tried_requests": 2, "rounds": 2, "n": 4,
    }  # fmt: skip
    return GenerationPlan(JOB, WORK, **{**fields, **changes})


class Fakes:
    """Starts workers that only pretend, and notes what they are asked."""

    def __init__(self, fails: Callable[[Job, str, dict[str, Any]], bool] = lambda *_: False):
        self.fails = fails
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.alive = self.most_alive = 0
        self.works: set[str] = set()

    def __call__(self, job: Job) -> Any:
        return _Fake(job, self)


class _Fake:
    def __init__(self, job: Job, all_: Fakes):
        self.job, self.all = job, all_
        all_.alive += 1
        all_.most_alive = max(all_.most_alive, all_.alive)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.all.alive -= 1

    def begin(self) -> None:
        self.all.works.add(self.job.work)
        assert Work.model_validate_json(Path(self.job.work).read_text()) == WORK

    def ask(self, do: str, **arguments: Any) -> Any:
        self.all.asked.append((self.job.name, do, arguments))
        if self.all.fails(self.job, do, arguments):
            raise WorkerFailed("it broke")
        return getattr(self, do)(**arguments)

    def warmup(self) -> dict[str, Any]:
        return {}

    def threads(self) -> dict[str, Any]:
        return {"threads": 2}

    def memory(self) -> dict[str, Any]:
        return {"baseline": 10, "peak": 30, "reserved": None}

    def counters(self) -> dict[str, Any]:
        return {"steps": 7}

    def decode(self, count: int | None = None, size: int | None = None) -> dict[str, Any]:
        size = self.job.size if size is None else size
        lengths = WORK.answers[:count]
        # 4 together is best, whatever the order in which sizes are tried.
        seconds = PACE[self.job.kind] * sum(lengths) * (1 + abs(size - 4))
        sums = [1, 2, 3] if self.job.kind != "hf-static" else [1, 2, 99]
        return {"seconds": seconds, "first_s": [3.0, 1.0, 2.0], "lengths": lengths,
                "checksums": sums[:count]}  # fmt: skip

    def score(self, share: bool) -> dict[str, Any]:
        tokens = 12 if share else 22
        return {"seconds": tokens / 2, "log_probs": -4.0, "requests": 2, "prompt_tokens": tokens}

    def sampling(self, way: str) -> dict[str, Any]:
        assert self.job.model.vocab_size == LARGE_VOCABULARY
        return {"seconds": 8.0, "sample_s": 1.0 + WAYS.index(way), "steps": 4}

    def settle(self, count: int) -> dict[str, Any]:
        return {"seconds": 10.0, "settle_s": 1.0, "steps": 5, "settled": 3}

    def family(self, n: int) -> dict[str, Any]:
        return {"seconds": 2.0 + n, "prompt": 6, "prompt_tokens": 6}


def run(asked: GenerationPlan, folder: Path, start: Any) -> GenerationResult:
    with progress("test", None) as bar:
        result = run_generation(asked, folder, bar, HEADER, start)
    assert list(folder.iterdir()) == []
    assert start.alive == 0
    return result


def test_contenders_take_turns_in_their_best_size(tmp_path: Path) -> None:
    fakes = Fakes()
    result = run(plan(), tmp_path, fakes)
    ours, static, continuous = result.decode
    assert [found.size for found in result.decode] == [0, 4, 4]
    assert ours.tried == {}
    assert static.tried == pytest.approx({2: 1 / 9, 8: 1 / 15, 4: 1 / 3})
    rounds = [name for name, do, arguments in fakes.asked if do == "decode" and not arguments]
    assert rounds == ["bc2-fp32", "hf-static-fp32", "hf-continuous-fp32"] * 2
    assert ours.counters == {"steps": 7}
    assert (ours.threads, ours.memory and ours.memory.taken) == (2, 20)
    # bc2's fake is in no size at all: (1 + 4) x 1 s a token, beside (1 + 0) x 3 s and 2.5 s.
    assert [ratio.rounds for ratio in result.ratios] == [[0.6, 0.6], [0.5, 0.5]]
    assert (static.same_answers, continuous.same_answers) == (2 / 3, 1.0)
    assert (ours.rounds[0].first_median_s, ours.rounds[0].first_p95_s) == (2.0, 3.0)


def test_on_a_gpu_each_contender_is_alone(tmp_path: Path) -> None:
    fakes = Fakes()
    on_gpu = replace(plan(), job=JOB.model_copy(update={"device": "cuda:0"}))
    result = run(on_gpu, tmp_path, fakes)
    assert fakes.most_alive == 1
    rounds = [name for name, do, arguments in fakes.asked if do == "decode" and not arguments]
    assert rounds == [
        name for name in ("bc2-fp32", "hf-static-fp32", "hf-continuous-fp32") for _ in range(2)
    ]
    assert [found.size for found in result.decode] == [0, 4, 4]
    assert result.decode[2].same_answers == 1.0
    # Each of two rounds against each of two.
    assert [ratio.rounds for ratio in result.ratios] == [[0.6] * 4, [0.5] * 4]
    assert [ratio.paired for ratio in result.ratios] == [False] * 2
    on_cpu = Fakes()
    assert all(ratio.paired for ratio in run(plan(), tmp_path, on_cpu).ratios)
    assert on_cpu.most_alive == 3


def test_a_single_size_is_not_tried(tmp_path: Path) -> None:
    fakes = Fakes()
    result = run(plan(sizes=(8,)), tmp_path, fakes)
    assert all(not arguments for _, do, arguments in fakes.asked if do == "decode")
    assert [found.size for found in result.decode] == [0, 8, 8]


def test_a_size_that_fails_is_passed_over(tmp_path: Path) -> None:
    fakes = Fakes(lambda job, do, arguments: arguments.get("size") == 4)
    result = run(plan(), tmp_path, fakes)
    assert result.decode[1].tried[4] == 0.0
    assert [found.size for found in result.decode] == [0, 2, 2]
    none = run(plan(), tmp_path, Fakes(lambda job, do, arguments: "size" in arguments))
    assert none.decode[1].failed == "it failed in every size that was tried"
    assert none.decode[0].failed is None


def test_a_peer_that_fails_costs_nothing_else(tmp_path: Path) -> None:
    fakes = Fakes(lambda job, do, _: job.kind == "hf-static" and do == "memory")
    result = run(plan(), tmp_path, fakes)
    assert [found.failed for found in result.decode] == [None, "it broke", None]
    assert [ratio.peer for ratio in result.ratios] == ["hf-continuous-fp32"]


def test_wrong_lengths_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _Fake.decode

    def short(self: _Fake, **arguments: Any) -> dict[str, Any]:
        answer = right(self, **arguments)
        return {**answer, "lengths": [1] * len(answer["lengths"])}

    monkeypatch.setattr(_Fake, "decode", short)
    with pytest.raises(RunFailed, match="lengths that were asked for"):
        run(plan(), tmp_path, Fakes())


def test_every_part_in_every_precision(tmp_path: Path) -> None:
    asked = plan(parts=PARTS, precisions=("fp32", "bf16"), contenders=("bc2",))
    result = run(asked, tmp_path, Fakes())
    assert [found.name for found in result.decode] == ["bc2-fp32", "bc2-bf16"]
    assert [found.precision for found in result.prefix] == ["fp32", "bf16"]
    (first, *_) = result.prefix
    assert (first.requests, first.shared_tokens, first.apart_tokens) == (2, 12, 22)
    assert first.times_as_fast.median == pytest.approx(22 / 12)
    assert [found.what for found in result.sampling] == [*WAYS, *WAYS]
    assert [found.share.median for found in result.sampling[:2]] == [1 / 8, 2 / 8]
    assert (result.settle[0].share.median, result.settle[0].events) == (0.1, 3)
    assert (result.n[0].one_prefill, result.n[0].times_as_long.median) == (True, 2.0)


def test_a_part_that_fails_is_told(tmp_path: Path) -> None:
    fakes = Fakes(lambda job, do, _: do in ("score", "decode"))
    result = run(plan(parts=PARTS, contenders=("bc2",)), tmp_path, fakes)
    assert result.failed == {"prefix in fp32": "it broke"}
    assert result.decode[0].failed == "it broke"
    assert result.n
    with pytest.raises(RunFailed, match="nothing of bc2 could be measured: it broke"):
        run(plan(parts=("prefix",)), tmp_path, fakes)


def test_progress_adds_up(tmp_path: Path) -> None:
    for asked in (plan(), plan(parts=PARTS, precisions=("fp32", "bf16")), plan(parts=("n",))):
        told = 0.0

        def step(advance: float, detail: str = "") -> None:
            nonlocal told
            told += advance

        run_generation(asked, tmp_path, step, HEADER, Fakes())
        assert told == asked.total


def test_what_will_be_measured_is_announced(capsys: pytest.CaptureFixture[str]) -> None:
    announce_generation(plan(parts=("decode", "prefix", "n")))
    said = capsys.readouterr().err
    assert "3 prompts of 4 tokens continued by 20 with bc2, hf-static, hf-continuous" in said
    assert "2 texts of 22 tokens scored; n" in said
