"""A benchmark: contenders train, a block of steps each, round after round.

On a CPU they take turns, so that other work of the machine disturbs all of them alike, and a
ratio is taken within a round. A GPU has no room for all of them at once: there each makes all its
rounds before the next one starts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bc2.bench.data import write_shards
from bc2.bench.made_data import work_of_step
from bc2.bench.process import Workers
from bc2.bench.results import BenchResult, Checkpoint, ContenderResult, Memory, Peak, Ratio
from bc2.bench.spec import Spec
from bc2.console import Progress, note, warn
from bc2.errors import RunFailed
from bc2.files import make_directory
from bc2.model.model_config import ModelConfig
from bc2.train.memory.run_memory import estimate_run
from bc2.train.run_config import RunConfig
from bc2.train.worker_process import WorkerFailed

#: Times that the device's peak is measured, before the rounds and again after them.
PEAK_REPEATS = 3


@dataclass(frozen=True)
class BenchPlan:
    """What to measure. `Spec.shards` is filled in when the data is written."""

    contenders: tuple[Spec, ...]
    steps: int
    """Optimizer steps of a block."""
    rounds: int
    """Blocks of each contender."""
    documents: int
    """Mean tokens of a document; 0: a row is one document."""
    saves: int
    """Checkpoints of each of ours that are timed."""
    datasheet: float | None
    """Peak FLOP/s of the device by its maker."""

    @property
    def model(self) -> ModelConfig:
        return self.contenders[0].model

    @property
    def training(self) -> RunConfig:
        return self.contenders[0].training

    @property
    def device(self) -> torch.device:
        return torch.device(self.training.device)

    @property
    def in_turn(self) -> bool:
        """Whether all contenders are alive together and take turns, as on a CPU."""
        return self.device.type == "cpu"

    @property
    def blocks(self) -> int:
        """What progress counts: a warm-up and the rounds of every contender."""
        return len(self.contenders) * (self.rounds + 1)


@dataclass
class _Running:
    """A contender at work, and what is known of it so far."""

    workers: Workers
    found: dict[str, Any] = field(default_factory=dict)
    """Fields of `ContenderResult`."""
    parts: list[dict[str, float]] = field(default_factory=list)
    """Mean seconds of each part, by block."""

    @property
    def spec(self) -> Spec:
        return self.workers.spec

    @property
    def failed(self) -> bool:
        return "failed" in self.found

    def attempt(self, act: Callable[[], None]) -> None:
        """Call `act`; if the workers fail, that is the contender's result."""
        if self.failed:
            return
        try:
            act()
        except WorkerFailed as error:
            self.found = {"failed": str(error)}
            warn(f"{self.spec.name} failed: {error}")
            # The others may have its memory.
            self.workers.close()

    def begin(self) -> None:
        self.workers.begin()
        self.found["warmup_steps"] = self.workers.ask("warmup")["steps"]
        self.found["threads"] = self.workers.ask("threads")["threads"]
        self.found["rounds"] = []

    def block(self, steps: int) -> None:
        answer = self.workers.ask("block", steps=steps)
        self.found["rounds"].append(answer["seconds"])
        self.parts.append(answer["parts"])
        self.found["loss"] = answer["loss"]

    def finish(self, steps: int, saves: int) -> None:
        """Measure memory, parts and checkpoints, after the rounds."""
        ranks = [Memory(**each) for each in self.workers.ask_each("memory")]
        most = max(ranks, key=lambda memory: memory.taken)
        self.found["memory"] = most.model_copy(update={"estimate": _estimate(self.spec)})
        self._parts(steps)
        if saves and self.spec.kind == "bc2":
            try:
                answer = self.workers.ask("checkpoint", steps=steps, saves=saves)
                self.found["checkpoint"] = Checkpoint(**answer)
            except WorkerFailed as error:
                # The rounds were measured: a full disk must not cost them.
                warn(f"{self.spec.name}: no checkpoint could be timed: {error}")
                self.found["checkpoint_failed"] = str(error)

    def _parts(self, steps: int) -> None:
        rounds, parts = self.found["rounds"], self.parts
        if self.spec.training.device.startswith("cuda"):
            answer = self.workers.ask("block", steps=steps, wait=True)
            rounds, parts = [answer["seconds"]], [answer["parts"]]
        self.found["parts"] = {
            name: statistics.fmean(part.get(name, 0.0) for part in parts) for name in parts[0]
        }
        self.found["parts_step_s"] = statistics.fmean(s for block in rounds for s in block)

    def result(self) -> ContenderResult:
        spec = self.spec
        return ContenderResult(
            name=spec.name,
            kind=spec.kind,
            checkpointing=spec.training.segment_layers if spec.kind == "bc2" else 0,
            ranks=spec.ranks,
            devices=spec.ranks if spec.training.device.startswith("cuda") else 1,
            parallel=spec.parallel.model_dump(mode="json"),
            **self.found,
        )


def _estimate(spec: Spec) -> dict[str, int] | None:
    """Bytes that bc2's engine should take above the imports, by part; None for a peer."""
    if spec.kind != "bc2":
        return None
    expected = estimate_run(spec.settings, spec.ranks)
    parts = {
        name: value
        for name, value in asdict(expected).items()
        if isinstance(value, int) and name != "host"
    }
    return {**parts, "total": expected.total}


def run_benchmark(
    plan: BenchPlan, scratch: Path, progress: Progress, header: Mapping[str, Any]
) -> BenchResult:
    """Measure a plan.

    Args:
        scratch: a folder on the disk where checkpoints go; nothing is left in it.
        progress: is called for every block.
        header: the fields of `BenchResult` that say what was asked for, where and when.

    Raises:
        RunFailed: none of bc2's contenders could run, so there is nothing to compare.
    """
    make_directory(scratch)
    with TemporaryDirectory(dir=scratch, prefix="run-") as folder, ExitStack() as held:
        shards = Path(folder) / "shards"
        if plan.contenders[0].reads_shards:
            write_shards(shards, plan.model.vocab_size, plan.training, plan.documents)
        named = [spec.model_copy(update={"shards": str(shards)}) for spec in plan.contenders]
        measure = _take_turns if plan.in_turn else _one_by_one
        running, peak, products = measure(plan, named, held, progress)
        found = [each.result() for each in running]
        _require_ours(found, plan.training.section)
        tokens, flops = work_of_step(plan.contenders[0].settings)
        result = BenchResult(
            **header,
            params=plan.model.num_params(),
            batch_tokens=tokens,
            flops_per_token=flops,
            peak=peak,
            contenders=found,
            ratios=list(_ratios(found, paired=plan.in_turn)),
        )
        products.ask("keep", flops=result.peak_flops)
    return result


@contextmanager
def _matmul(spec: Spec) -> Iterator[Workers]:
    own = {"kind": "matmul", "name": "matmul", "tuned": True, "ranks": 1}
    with closing(Workers(spec.model_copy(update=own))) as products:
        products.begin()
        yield products


#: The contenders at the end, the device's peak, and the process that measured it last.
_Measured = tuple[list[_Running], Peak, Workers]


def _take_turns(
    plan: BenchPlan, specs: list[Spec], held: ExitStack, progress: Progress
) -> _Measured:
    """All contenders alive together, one at work; `held` ends them."""
    products = held.enter_context(_matmul(specs[0]))
    running = []
    for spec in specs:
        running.append(each := _Running(held.enter_context(closing(Workers(spec)))))
        _warm_up(each, progress)
    before, _ = _peak(products)
    for _ in range(plan.rounds):
        for each in running:
            _block(plan, each, progress)
    after, highest = _peak(products)
    for each in running:
        each.attempt(partial(each.finish, plan.steps, plan.saves))
    peak = Peak(before=before, after=after, datasheet=plan.datasheet, kept=highest)
    return running, peak, products


def _one_by_one(
    plan: BenchPlan, specs: list[Spec], held: ExitStack, progress: Progress
) -> _Measured:
    """Each contender has the device to itself, from its start to its end."""
    with _matmul(specs[0]) as products:
        before, _ = _peak(products)
    running = []
    for spec in specs:
        with closing(Workers(spec)) as workers:
            running.append(each := _Running(workers))
            _warm_up(each, progress)
            for _ in range(plan.rounds):
                _block(plan, each, progress)
            each.attempt(partial(each.finish, plan.steps, plan.saves))
    products = held.enter_context(_matmul(specs[0]))
    after, highest = _peak(products)
    peak = Peak(before=before, after=after, datasheet=plan.datasheet, kept=highest)
    return running, peak, products


def _peak(products: Workers) -> tuple[float, float]:
    """FLOP/s measured now, and the highest ever seen on this machine."""
    answers = [products.ask("peak") for _ in range(PEAK_REPEATS)]
    return max(float(a["flops"]) for a in answers), max(float(a["kept"]) for a in answers)


def _warm_up(each: _Running, progress: Progress) -> None:
    each.attempt(each.begin)
    steps = each.found.get("warmup_steps", 0)
    progress(1, f"{each.spec.name}: {steps} steps to warm up" if steps else "")


def _block(plan: BenchPlan, each: _Running, progress: Progress) -> None:
    each.attempt(partial(each.block, plan.steps))
    if each.failed:
        progress(1)
        return
    seconds = statistics.median(each.found["rounds"][-1])
    progress(1, f"{each.spec.name}: {seconds * 1e3:.1f} ms a step")


def _require_ours(found: list[ContenderResult], section: str) -> None:
    ours = [each for each in found if each.kind == "bc2"]
    if ours and all(each.failed for each in ours):
        raise RunFailed(
            f"{ours[0].name} could not be measured: {ours[0].failed}",
            todo=f"lower {section}.micro_batch, raise {section}.activation_checkpointing, or look "
            "at what `bc2 doctor` says",
        )


def _ratios(found: list[ContenderResult], *, paired: bool) -> Iterator[Ratio]:
    """Each of bc2's contenders over every peer, and over the first of bc2's."""
    ran = [each for each in found if not each.failed]
    ours = [each for each in ran if each.kind == "bc2"]
    peers = [each for each in ran if each.kind == "hf"]
    for one in ours:
        others = [each for each in ours[:1] if each is not one]
        for other in peers + others:
            mine, theirs = (list(map(statistics.median, c.rounds)) for c in (one, other))
            yield Ratio.between(one.name, other.name, mine, theirs, paired=paired)


def announce(plan: BenchPlan) -> None:
    """Print on stderr what is going to be measured."""
    training = plan.training
    how = "in turn" if plan.in_turn else "one after the other"
    note(
        f"{plan.model.num_params():,} parameters, {training.batch_sequences} x "
        f"{training.sequence_length} tokens a step in micro-batches of {training.micro_batch}, "
        f"{training.precision} on {training.device}: {plan.rounds} rounds of {plan.steps} steps "
        f"of {', '.join(spec.name for spec in plan.contenders)} {how}"
    )
