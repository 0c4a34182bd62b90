"""`bc2 pretrain`: put the model, the data and the loop together, and go on from the last
complete checkpoint of the same run if there is one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bc2.console import note, progress, warn
from bc2.data.loader import Loader
from bc2.errors import IntegrityError
from bc2.files import make_directory, replace_durably
from bc2.model.model_config import ModelConfig
from bc2.parallel.agreement import check_shared_folder, fail_together
from bc2.parallel.mesh import Mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.checkpoint import Saver, Snapshot, reading_order
from bc2.train.deterministic import deterministic
from bc2.train.device import pick_precision, rank_device
from bc2.train.engines.base import Engine
from bc2.train.engines.make import make_engine
from bc2.train.guard import Guard
from bc2.train.heldout import Heldout
from bc2.train.loop import Loop
from bc2.train.memory.estimate import settle_checkpointing
from bc2.train.memory.measured import Footprint
from bc2.train.metrics import Log, MetricsLog, NoLog, open_trackers
from bc2.train.micro_batch import settle_micro_batch
from bc2.train.objective import NextToken, Objective
from bc2.train.peak_flops import STEP, KeptPeaks, Peak, keep_peak, peak_flops
from bc2.train.precision import Precision
from bc2.train.pretrain_config import PretrainConfig
from bc2.train.rendezvous import alone, following, join
from bc2.train.run_inputs import RunInputs, mixture_lines, open_run_inputs
from bc2.train.runs import RunFacts, mark_running
from bc2.train.schedule import Speed
from bc2.train.signals import Stop, stop_on_signals
from bc2.train.stream import TokenStream

#: Raised when the same settings would train another model.
VERSION = 3


@dataclass(frozen=True)
class Run:
    """A pretraining run, identified by what its results depend on."""

    name: str
    config: PretrainConfig
    model: ModelConfig
    tokens: Artifact
    tokenizer: Artifact
    recipe: Mapping[str, Any]
    command: str
    """What a person types to go on with it."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How it is laid out over ranks, which changes no result but rounding."""

    @classmethod
    def resolve(
        cls, name: str, config: PretrainConfig, model: ModelConfig, tokens: Artifact,
        tokenizer: Artifact, recipe: Mapping[str, Any], command: list[str],
        parallel: ParallelConfig | None = None,
    ) -> Run:  # fmt: skip
        """Resolve what the machine decides, so that it is part of the key."""
        device = rank_device(config.device)
        precision = pick_precision(config.precision, device)
        config = config.model_copy(update={"precision": precision, "device": str(device)})
        layout = parallel or ParallelConfig()
        config = settle_checkpointing(model, config, layout.tensor)
        spoken = shlex.join(command)
        return cls(name, config, model, tokens, tokenizer, recipe, spoken, layout)

    @property
    def key(self) -> str:
        settings = {"pretrain": self.config.keyed(), "model": self.model.keyed()}
        return stage_key("checkpoint", VERSION, settings, (self.tokens.digest,))

    def folder(self, registry: Registry) -> Path:
        """Where the run's metrics, plots and trackers live."""
        return registry.runs / f"{self.name}-{self.key[:12]}"

    def _outdated(self, registry: Registry) -> set[str] | None:
        """Digests that an unfinished ``--fresh`` must not go on from; None if there is none.

        By digest and not by time: a clock may be set back.
        """
        marker = self.folder(registry) / FRESH
        return set(marker.read_text().split()) if marker.exists() else None

    def renew(self, registry: Registry, artifact: Artifact) -> None:
        """What was there before ``--fresh`` is made again, to the bit: it may be gone on from."""
        outdated = self._outdated(registry)
        if outdated and artifact.digest in outdated:
            outdated.remove(artifact.digest)
            replace_durably(self.folder(registry) / FRESH, "\n".join(outdated).encode())

    def finished(self, registry: Registry) -> Artifact | None:
        """The run's finished checkpoint, unless training it anew was begun and not ended."""
        if self._outdated(registry) is not None:
            return None
        return registry.find("checkpoint", self.key, finished=True)

    def checkpoints(self, registry: Registry) -> list[Artifact]:
        """Unfinished checkpoints to go on from, the furthest last.

        By tokens read, not by steps: a rollback takes the step back and never the data.
        """
        outdated = self._outdated(registry) or set()
        mine = [a for a in self._unfinished(registry) if a.digest not in outdated]
        return sorted(mine, key=reading_order)

    def _unfinished(self, registry: Registry) -> list[Artifact]:
        checkpoints = registry.list("checkpoint")
        return [a for a in checkpoints if a.key == self.key and not a.finished]

    def start_over(self, registry: Registry) -> None:
        """Mark the run as begun anew, and unregister what it must not go on from."""
        there = self._unfinished(registry)
        outdated = "\n".join(artifact.digest for artifact in there)
        replace_durably(self.folder(registry) / FRESH, outdated.encode())
        for artifact in there:
            if not artifact.tags:
                registry.remove(artifact)


#: In a run's folder while it is trained anew: digests of checkpoints from before, a line each.
FRESH = "fresh"


def _step(artifact: Artifact) -> int:
    return artifact.position.step if artifact.position else 0


def pretrain(run: Run, registry: Registry, *, fresh: bool = False) -> Artifact:
    """Train, or go on training, and return the finished checkpoint.

    Args:
        fresh: start over even if there are checkpoints of the same run.

    Raises:
        RecipeError: settings that do not fit the data; nothing was written.
        RunFailed: another process is at the same run, or too many bad steps.
        Interrupted: a signal stopped it; everything is saved.
    """
    mesh = join(run)
    with following(mesh.world):
        return _pretrain(run, registry, mesh, fresh)


def _pretrain(run: Run, registry: Registry, mesh: Mesh, fresh: bool) -> Artifact:
    make_directory(registry.work)
    check_shared_folder(registry.work, mesh.world)
    with fail_together(mesh.world):
        plan = open_run_inputs(run.config, run.tokens, run.tokenizer, verify=mesh.first)
    with alone(run, registry, mesh):
        known = None
        with fail_together(mesh.world):
            if mesh.first:
                known = _begin(run, registry, fresh)
        known = mesh.world.broadcast_object(known)
        if known is not None:
            return registry.get(known)
        with _marked(run, registry, mesh), deterministic(run.config.deterministic):
            config = settle_micro_batch(run.model, run.config, run.folder(registry), anew=fresh)
            artifact = _train(replace(run, config=config), plan, registry, mesh)
        if mesh.first:
            (run.folder(registry) / FRESH).unlink(missing_ok=True)
    return artifact


def _begin(run: Run, registry: Registry, fresh: bool) -> str | None:
    """Make the run's folder and clear what is left of others; the digest if it is finished."""
    make_directory(run.folder(registry))
    if fresh:
        run.start_over(registry)
    known = run.finished(registry)
    if known is None:
        registry.sweep()
    return known.digest if known else None


def _marked(run: Run, registry: Registry, mesh: Mesh) -> AbstractContextManager[None]:
    return mark_running(run.folder(registry)) if mesh.first else nullcontext()


def _train(run: Run, plan: RunInputs, registry: Registry, mesh: Mesh) -> Artifact:
    config, folder = run.config, run.folder(registry)
    if mesh.first:
        replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
        _facts(run, plan).write(folder)
    # Measuring the peak may draw random numbers; the seed is set after it.
    speed = _speed(run, mesh)
    footprint = Footprint(run.model, config, run.parallel, mesh.world.size)
    engine = make_engine(run.model, config, run.parallel, mesh)
    objective = NextToken(config.z_loss)
    earlier = _earlier(run, registry, mesh)
    earlier, start = _load_newest(earlier, mesh)
    _announce(run, plan, speed, start, folder)
    log = _log(run, folder, start, mesh)
    total = plan.schedule.total
    with _closing(log), progress(run.name, total, "steps") as bar, stop_on_signals() as stop:
        artifact = Loop(
            engine=engine,
            objective=objective,
            stream=_stream(config, plan, _check(stop, mesh), mesh),
            schedule=plan.schedule,
            speed=speed,
            guard=Guard(config.guard),
            saver=_saver(run, plan, registry, earlier, mesh),
            log=log,
            evaluate=_evaluator(config, plan, engine, objective, _check(stop, mesh)),
            progress=bar,
            stop=stop,
            resume_command=run.command,
        ).run(start)
        log.time("memory", step=total, **footprint.row())
        log.time("finish", step=total)
    return artifact


def _check(stop: Stop, mesh: Mesh) -> Callable[[], None]:
    """What ends a wait early: ranks stop together, between two steps."""
    return stop.check if mesh.world.size == 1 else lambda: None


def _earlier(run: Run, registry: Registry, mesh: Mesh) -> list[Artifact]:
    """The run's checkpoints as the first rank sees them."""
    digests = [a.digest for a in run.checkpoints(registry)] if mesh.first else None
    found = mesh.world.broadcast_object(digests)
    assert found is not None
    return [registry.get(digest) for digest in found]


def _load_newest(earlier: list[Artifact], mesh: Mesh) -> tuple[list[Artifact], Snapshot | None]:
    """The newest checkpoint that is whole, and the list up to it.

    Raises:
        IntegrityError: there are checkpoints and none is whole.
    """
    for at in range(len(earlier), 0, -1):
        checkpoint = earlier[at - 1]
        try:
            with checkpoint.hold():
                return earlier[:at], Snapshot.load(checkpoint, mesh)
        except IntegrityError as error:
            if at == 1:
                raise
            warn(f"{checkpoint.title} is not whole ({error}): going on from the one before")
    return [], None


def _log(run: Run, folder: Path, start: Snapshot | None, mesh: Mesh) -> Log:
    if not mesh.first:
        return NoLog()
    config = run.config
    log = MetricsLog(folder)
    log.time(
        "resume" if start else "start",
        step=start.state.step if start else 0,
        deterministic=config.deterministic,
        threads=torch.get_num_threads(),
        micro_batch=config.micro_sequences,
        checkpointing=config.segment_layers,
        ranks=mesh.world.size,
    )
    log.trackers = open_trackers(config.track, folder, run=run.name, recipe=run.recipe)
    return log


def _facts(run: Run, plan: RunInputs) -> RunFacts:
    """What watching and reporting the run need to know beside its rows."""
    return RunFacts(
        name=run.name,
        key=run.key,
        steps=plan.schedule.total,
        batch_tokens=run.config.batch_tokens,
        sequence_length=run.config.sequence_length,
        clip_norm=run.config.optimizer.clip_norm,
        parents=(run.tokens.digest, run.tokenizer.digest),
    )


def _stream(
    config: PretrainConfig, plan: RunInputs, check: Callable[[], None], mesh: Mesh
) -> TokenStream:
    shards = plan.shards
    loader = Loader(shards, "train", plan.mixture, config.sequence_length, shards.eos_id)
    return TokenStream(
        loader,
        config.batch_sequences,
        config.micro_sequences,
        timeout_s=config.data_timeout_s,
        check=check,
        rank=mesh.data.rank,
        ranks=mesh.data.size,
    )


def _saver(
    run: Run, plan: RunInputs, registry: Registry, earlier: list[Artifact], mesh: Mesh
) -> Saver:
    every = plan.schedule.checkpoint_every
    scheduled = [artifact for artifact in earlier if _step(artifact) % every == 0]
    return Saver(
        registry,
        _draft(run),
        run.model,
        plan.tokenizer,
        sequence_length=run.config.sequence_length,
        keep=run.config.keep_checkpoints,
        latest=earlier[-1] if earlier else None,
        anchor=scheduled[-1] if scheduled else None,
        on_publish=partial(run.renew, registry),
        mesh=mesh,
    )


@contextmanager
def _closing(log: Log) -> Iterator[None]:
    try:
        yield
    finally:
        log.close()


def _speed(run: Run, mesh: Mesh) -> Speed:
    config = run.config
    device = torch.device(config.device)
    precision = pick_precision(config.precision, device)
    kept = KeptPeaks.of_user()
    peak, source = peak_flops(device, precision, kept)
    ranks = f" on each of {mesh.world.size} ranks" if mesh.world.size > 1 else ""
    note(f"{device}, {config.precision}: peak {peak / 1e12:.2f} TFLOP/s{ranks} ({source})")
    flops = run.model.flops_per_token(config.sequence_length)
    raised = _keep_raised(device, precision, peak, mesh, kept)
    return Speed(config.batch_tokens, flops, peak * mesh.world.size, raised)


def _keep_raised(
    device: torch.device, precision: Precision, peak: float, mesh: Mesh, kept: KeptPeaks
) -> Callable[[float], None]:
    """Keeps, on the first rank, a peak that a step raised, and says so the first time."""
    told = False

    def raised(flops: float) -> None:
        nonlocal told
        if not mesh.first:
            return
        reached = flops / mesh.world.size
        if not told:
            note(
                f"a step reached {reached / 1e12:.2f} TFLOP/s: the peak of {peak / 1e12:.2f} was "
                "measured too low, and is raised to what steps reach"
            )
        told = True
        keep_peak(device, precision, Peak(reached, STEP), kept)

    return raised


def _draft(run: Run) -> Draft:
    return Draft(
        kind="checkpoint",
        name=run.name,
        key=run.key,
        parents=(run.tokens.digest, run.tokenizer.digest),
        recipe=run.recipe,
        facts={"precision": run.config.precision, "device": run.config.device},
    )


def _announce(
    run: Run, plan: RunInputs, speed: Speed, start: Snapshot | None, folder: Path
) -> None:
    total = plan.schedule.total
    tokens = total * speed.batch_tokens
    epoch = sum(plan.mixture.windows.values()) * run.config.sequence_length
    note(
        f"{run.name}: {run.model.num_params():,} parameters, {total:,} steps of "
        f"{speed.batch_tokens:,} tokens = {tokens:,} tokens, "
        f"{tokens / epoch:.2f} epochs of {epoch:,}; metrics in {folder}"
    )
    for line in mixture_lines(run.config, plan):
        note(line)
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")


def _evaluator(
    config: PretrainConfig,
    plan: RunInputs,
    engine: Engine,
    objective: Objective,
    check: Callable[[], None],
) -> Heldout | None:
    if not config.eval_tokens or not plan.shards.sources("heldout"):
        return None
    return Heldout(
        engine,
        objective,
        plan.shards,
        Tokenizer.load(plan.tokenizer),
        sequence_length=config.sequence_length,
        micro_batch=config.micro_sequences,
        tokens=config.eval_tokens,
        prompts=config.sample_prompts,
        new_tokens=config.sample_tokens,
        timeout_s=config.data_timeout_s,
        check=check,
    )
