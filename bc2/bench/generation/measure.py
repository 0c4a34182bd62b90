"""The benchmark of generation: part by part, and in each part round after round.

The contenders of `decode` are processes. On a CPU they are alive together and take turns, so that
other work of the machine disturbs all of them alike, and a ratio is taken within a round. A GPU has
no room for all of them: there each makes all its rounds before the next one starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bc2.bench.generation.job import PARTS, Job, Kind
from bc2.bench.generation.parts import (
    measure_family,
    measure_prefix,
    measure_sampling,
    measure_settle,
)
from bc2.bench.generation.results import DecodeResult, GenerationResult, HostMemory, pass_of
from bc2.bench.generation.work import Work
from bc2.bench.process import worker_environment
from bc2.bench.results import Ratio
from bc2.console import Progress, note, warn
from bc2.errors import RunFailed
from bc2.files import make_directory
from bc2.train.precision import Precision
from bc2.train.worker_process import Answer, WorkerFailed, WorkerProcess

#: The module of the workers.
WORKER = "bc2.bench.generation.worker"


@dataclass(frozen=True)
class GenerationPlan:
    """What to measure. `Job.work` is filled in when the work is written."""

    job: Job
    """Of bc2 in the first precision; the others differ in kind, precision and size."""
    work: Work
    parts: tuple[str, ...]
    contenders: tuple[Kind, ...]
    """Of `decode`."""
    precisions: tuple[Precision, ...]
    sizes: tuple[int, ...]
    """Tried for each peer; a single one is taken as it is."""
    tried_requests: int
    """The first prompts, on which they are tried."""
    rounds: int
    n: int
    """Continuations in the part `n`."""

    @property
    def in_turn(self) -> bool:
        """Whether the contenders of `decode` are alive together and take turns, as on a CPU."""
        return self.job.device == "cpu"

    @property
    def total(self) -> int:
        """What progress counts: rounds, and the choice of a size for each contender."""
        each = self.rounds * (len(self.parts) - ("decode" in self.parts))
        if "decode" in self.parts:
            each += len(self.contenders) * (self.rounds + 1)
        return each * len(self.precisions)

    def jobs(self, precision: Precision) -> list[Job]:
        """The contenders of `decode` in a precision."""
        return [
            self.job.model_copy(update={"kind": kind, "precision": precision})
            for kind in self.contenders
        ]


@dataclass
class _Running:
    """A contender at work, and what is known of it so far."""

    job: Job
    start: Callable[[Job], WorkerProcess]
    found: dict[str, Any] = field(default_factory=dict)
    """Fields of `DecodeResult`."""
    process: WorkerProcess | None = None
    checksums: list[int] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return "failed" in self.found

    def attempt(self, act: Callable[..., None], *arguments: Any) -> None:
        """Call `act`; if the worker fails, that is the contender's result."""
        if self.failed:
            return
        try:
            act(*arguments)
        except WorkerFailed as error:
            self.found = {"failed": str(error)}
            warn(f"{self.job.name} failed: {error}")
            self.close()

    def choose_size(self, sizes: tuple[int, ...], requests: int) -> None:
        """Take the size that is fastest on the first prompts."""
        if self.job.kind == "bc2":
            return
        if len(sizes) > 1:
            self.found["tried"] = {size: self._try(size, requests) for size in sizes}
        tried: dict[int, float] = self.found.get("tried", {})
        best = max(sizes, key=lambda size: tried.get(size, 0.0))
        if tried and not tried[best]:
            raise WorkerFailed("it failed in every size that was tried")
        self.job = self.job.model_copy(update={"size": best})
        self.found["size"] = best

    def _try(self, size: int, requests: int) -> float:
        """New tokens/s in a process of its own, since it may take all memory; 0 if it fails."""
        try:
            with self.start(self.job) as process:
                process.begin()
                process.ask("warmup")
                answer = process.ask("decode", count=requests, size=size)
        except WorkerFailed as error:
            warn(f"{self.job.name} with {size} sequences together failed: {error}")
            return 0.0
        speed: float = sum(answer["lengths"]) / answer["seconds"]
        return speed

    def begin(self) -> None:
        self.process = self.start(self.job)
        self.process.begin()
        self.ask("warmup")
        self.found["threads"] = self.ask("threads")["threads"]
        self.found["rounds"] = []

    def round(self, answers: list[int]) -> None:
        answer = self.ask("decode")
        if answer["lengths"] != answers:
            raise WorkerFailed("its answers do not have the lengths that were asked for")
        self.found["rounds"].append(pass_of(answer))
        self.checksums = answer["checksums"]

    def finish(self) -> None:
        self.found["memory"] = HostMemory(**self.ask("memory"))
        if self.job.kind == "bc2":
            self.found["counters"] = self.ask("counters")

    def ask(self, do: str, **arguments: Any) -> Answer:
        assert self.process is not None
        return self.process.ask(do, **arguments)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None

    def result(self, ours: list[int]) -> DecodeResult:
        """What was found.

        Args:
            ours: checksums of bc2's answers; empty if it was not measured.
        """
        if ours and self.checksums and self.job.kind != "bc2":
            same = [mine == other for mine, other in zip(ours, self.checksums, strict=True)]
            self.found["same_answers"] = sum(same) / len(same)
        return DecodeResult(
            name=self.job.name, kind=self.job.kind, precision=self.job.precision, **self.found
        )


def start_worker(job: Job) -> WorkerProcess:
    """The process of a job, in bc2's own process settings, whoever the contender is."""
    return WorkerProcess(WORKER, job.model_dump_json(), worker_environment(tuned=True))


def run_generation(
    plan: GenerationPlan, scratch: Path, progress: Progress, header: Mapping[str, Any],
    start: Callable[[Job], WorkerProcess] = start_worker,
) -> GenerationResult:  # fmt: skip
    """Measure a plan.

    Args:
        scratch: a folder for the file of the work; nothing is left in it.
        progress: is called when a contender has made a round.
        header: the fields of `GenerationResult` that say what was asked for, where and when.
        start: makes the process of a job.

    Raises:
        RunFailed: nothing of bc2's could be measured.
    """
    make_directory(scratch)
    found: dict[str, Any] = {"failed": {}}
    with TemporaryDirectory(dir=scratch, prefix="run-") as folder:
        path = Path(folder) / "work.json"
        path.write_text(plan.work.model_dump_json(), encoding="utf-8")
        plan = _with_work(plan, str(path))
        for precision in plan.precisions:
            for part in plan.parts:
                _measure(plan, part, precision, start, progress, found)
    _require_ours(found)
    return GenerationResult(
        **header, work=plan.work.facts(), params=plan.job.model.num_params(), **found
    )


def _with_work(plan: GenerationPlan, path: str) -> GenerationPlan:
    return replace(plan, job=plan.job.model_copy(update={"work": path}))


def _measure(
    plan: GenerationPlan, part: str, precision: Precision,
    start: Callable[[Job], WorkerProcess], progress: Progress, found: dict[str, Any],
) -> None:  # fmt: skip
    """Measure one part in one precision, and add what was found."""
    job = plan.job.model_copy(update={"precision": precision})
    try:
        if part == "decode":
            results, ratios = _decode(plan, precision, start, progress)
            found.setdefault("decode", []).extend(results)
            found.setdefault("ratios", []).extend(ratios)
        elif part == "prefix":
            found.setdefault(part, []).append(measure_prefix(job, start, plan.rounds, progress))
        elif part == "sampling":
            found.setdefault(part, []).extend(measure_sampling(job, start, plan.rounds, progress))
        elif part == "settle":
            found.setdefault(part, []).append(measure_settle(job, start, plan.rounds, progress))
        else:
            found.setdefault(part, []).append(
                measure_family(job, start, plan.rounds, plan.n, progress)
            )
    except WorkerFailed as error:
        warn(f"{part} in {precision} could not be measured: {error}")
        found["failed"][f"{part} in {precision}"] = str(error)


def _decode(
    plan: GenerationPlan, precision: Precision, start: Callable[[Job], WorkerProcess],
    progress: Progress,
) -> tuple[list[DecodeResult], list[Ratio]]:  # fmt: skip
    running = [_Running(job, start) for job in plan.jobs(precision)]
    if plan.in_turn:
        _compete(plan, running, progress)
    else:
        for each in running:
            _compete(plan, [each], progress)
    ours = next((each.checksums for each in running if each.job.kind == "bc2"), [])
    results = [each.result(ours) for each in running]
    return results, list(_ratios(results, paired=plan.in_turn))


def _compete(plan: GenerationPlan, running: list[_Running], progress: Progress) -> None:
    """Measure contenders that are alive together, from their start to their end."""
    with ExitStack() as held:
        for each in running:
            held.enter_context(closing(each))
            each.attempt(each.choose_size, plan.sizes, plan.tried_requests)
            progress(1, f"{each.job.name}: {_told_size(each)}")
        for each in running:
            each.attempt(each.begin)
        for _ in range(plan.rounds):
            for each in running:
                each.attempt(each.round, plan.work.answers)
                progress(1, "" if each.failed else f"{each.job.name}: {_told_speed(plan, each)}")
        for each in running:
            each.attempt(each.finish)


def _told_size(each: _Running) -> str:
    return f"{each.job.size} sequences together" if each.job.size else "ready"


def _told_speed(plan: GenerationPlan, each: _Running) -> str:
    seconds = each.found["rounds"][-1].seconds
    return f"{sum(plan.work.answers) / seconds:,.0f} tokens/s"


def _ratios(results: list[DecodeResult], *, paired: bool) -> Iterator[Ratio]:
    """How many times as fast bc2 is as each peer."""
    ran = [found for found in results if not found.failed]
    for ours in (found for found in ran if found.kind == "bc2"):
        for peer in (found for found in ran if found.kind != "bc2"):
            mine, theirs = ([each.seconds for each in one.rounds] for one in (ours, peer))
            yield Ratio.between(ours.name, peer.name, mine, theirs, paired=paired)


def _require_ours(found: dict[str, Any]) -> None:
    """Raises: RunFailed if nothing of bc2's was measured."""
    ours = [each for each in found.get("decode", []) if each.kind == "bc2"]
    if any(not each.failed for each in ours) or any(found.get(part) for part in PARTS[1:]):
        return
    reason = next((each.failed for each in ours), None) or next(iter(found["failed"].values()))
    raise RunFailed(
        f"nothing of bc2 could be measured: {reason}", todo="look at what `bc2 doctor` says"
    )


def announce_generation(plan: GenerationPlan) -> None:
    """Print on stderr what is going to be measured."""
    facts = plan.work.facts()
    told = {
        "decode": f"{facts['requests']} prompts of {facts['prompt_tokens']:,} tokens continued by "
        f"{facts['answer_tokens']:,} with {', '.join(plan.contenders)}",
        "prefix": f"{facts['score_requests']} texts of {facts['score_tokens']:,} tokens scored",
    }
    parts = "; ".join(told.get(part, part) for part in plan.parts)
    note(
        f"{plan.job.model.num_params():,} parameters, {', '.join(plan.precisions)} on "
        f"{plan.job.device}: {plan.rounds} rounds of {parts}"
    )
