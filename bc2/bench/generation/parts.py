"""The parts that measure bc2 alone: shared prefixes, sampling, settling, siblings."""

from __future__ import annotations

from collections.abc import Callable

from bc2.bench.generation.job import Job
from bc2.bench.generation.results import FamilyResult, PrefixResult, ShareResult
from bc2.console import Progress
from bc2.train.worker_process import Answer, WorkerProcess

Start = Callable[[Job], WorkerProcess]

#: Baichuan 2's vocabulary, at which choosing tokens costs most.
LARGE_VOCABULARY = 125_696

#: How tokens are chosen: names in `bc2.bench.generation.ours.WAYS`.
WAYS = ("temperature", "top-k", "top-p", "top-k, top-p")

#: Prompts of the greedy run in which the settling of near ties is timed.
SETTLED_PROMPTS = 64


def measure_prefix(job: Job, start: Start, rounds: int, progress: Progress) -> PrefixResult:
    """Score questions behind common examples with shared beginnings, and each text alone."""
    with start(job) as worker:
        worker.begin()
        worker.ask("warmup")
        answers = []
        for _ in range(rounds):
            answers.append([worker.ask("score", share=share) for share in (True, False)])
            progress(1, "prefix")
    shared, apart = zip(*answers, strict=True)
    requests = int(shared[0]["requests"])
    return PrefixResult(
        precision=job.precision,
        requests=requests,
        shared_s=[each["seconds"] for each in shared],
        apart_s=[each["seconds"] for each in apart],
        shared_tokens=int(shared[0]["prompt_tokens"]),
        apart_tokens=int(apart[0]["prompt_tokens"]),
        difference=abs(shared[0]["log_probs"] - apart[0]["log_probs"]) / requests,
    )


def measure_sampling(job: Job, start: Start, rounds: int, progress: Progress) -> list[ShareResult]:
    """The share of decoding that choosing tokens takes, at a large vocabulary."""
    model = job.model.model_copy(update={"vocab_size": LARGE_VOCABULARY})
    answers: dict[str, list[Answer]] = {way: [] for way in WAYS}
    with start(job.model_copy(update={"model": model, "checkpoint": None})) as worker:
        worker.begin()
        worker.ask("sampling", way=WAYS[0])
        for _ in range(rounds):
            for way in WAYS:
                answers[way].append(worker.ask("sampling", way=way))
            progress(1, "sampling")
    return [
        ShareResult(
            precision=job.precision,
            what=way,
            part_s=[each["sample_s"] for each in found],
            seconds=[each["seconds"] for each in found],
            steps=int(found[0]["steps"]),
        )
        for way, found in answers.items()
    ]


def measure_settle(job: Job, start: Start, rounds: int, progress: Progress) -> ShareResult:
    """The share of a greedy run that the settling of near ties takes."""
    answers = []
    with start(job) as worker:
        worker.begin()
        worker.ask("warmup")
        for _ in range(rounds):
            answers.append(worker.ask("settle", count=SETTLED_PROMPTS))
            progress(1, "settle")
    return ShareResult(
        precision=job.precision,
        what="near ties",
        part_s=[each["settle_s"] for each in answers],
        seconds=[each["seconds"] for each in answers],
        steps=int(answers[0]["steps"]),
        events=int(answers[0]["settled"]),
    )


def measure_family(job: Job, start: Start, rounds: int, n: int, progress: Progress) -> FamilyResult:
    """Several continuations of one prompt beside one."""
    one, several = [], []
    with start(job) as worker:
        worker.begin()
        worker.ask("warmup")
        for _ in range(rounds):
            one.append(worker.ask("family", n=1))
            several.append(worker.ask("family", n=n))
            progress(1, "n")
    return FamilyResult(
        precision=job.precision,
        n=n,
        prompt=int(several[0]["prompt"]),
        prompt_tokens=int(several[0]["prompt_tokens"]),
        one_s=[each["seconds"] for each in one],
        all_s=[each["seconds"] for each in several],
    )
