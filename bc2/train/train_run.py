"""Train one run, whatever its algorithm: put models, data and loop together, and resume from its
last complete checkpoint if there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bc2.console import note, progress, warn
from bc2.errors import IntegrityError
from bc2.files import make_directory, replace_durably
from bc2.parallel.agreement import check_shared_folder, fail_together
from bc2.parallel.file_check import check_files_together
from bc2.parallel.mesh import Mesh, check_same_on_all_ranks
from bc2.registry import Artifact, Draft, Registry
from bc2.registry.verified import VerifiedFiles
from bc2.train.algorithm import Training
from bc2.train.allocator import use_expandable_segments
from bc2.train.checkpoint import Saver
from bc2.train.deterministic import deterministic
from bc2.train.logs.run_log import Log, MetricsLog, NoLog
from bc2.train.logs.runs import RunFacts, mark_running
from bc2.train.logs.trackers import check_trackers, make_trackers
from bc2.train.loop import Loop
from bc2.train.memory.measured import Footprint
from bc2.train.memory.run_memory import part_trained
from bc2.train.micro_batch import settle_micro_batch
from bc2.train.models import make_models
from bc2.train.rendezvous import explain_lost_rank, join_ranks, lock_run
from bc2.train.run import Run
from bc2.train.signals import Stop, stop_on_signals
from bc2.train.snapshot import Snapshot
from bc2.train.speed.run_speed import speed_of
from bc2.train.start_weights import check_start, start_weights
from bc2.train.trained_models import TrainedModels


def _step(artifact: Artifact) -> int:
    return artifact.position.step if artifact.position else 0


def train_run(run: Run, registry: Registry, *, fresh: bool = False) -> Artifact:
    """Train, or resume training, and return the finished checkpoint.

    Args:
        fresh: start over even if there are checkpoints of the same run.

    Raises:
        RecipeError: settings that do not fit the data; nothing was written.
        RunFailed: another process trains the same run, or there were too many bad steps.
        Interrupted: a signal stopped it; everything is saved.
    """
    use_expandable_segments(torch.device(run.config.device))
    mesh = join_ranks(run)
    with explain_lost_rank(mesh.world), ExitStack() as held:
        for artifact in run.inputs.all():
            held.enter_context(artifact.hold())
        return _train_run(run, registry, mesh, fresh)


def _train_run(run: Run, registry: Registry, mesh: Mesh, fresh: bool) -> Artifact:
    make_directory(registry.work)
    check_shared_folder(registry.work, mesh.world)
    with fail_together(mesh.world):
        check_trackers(run.config.track)
        check_start(run)
        training = run.algorithm.open(run)
    read = {"steps": training.schedule.total, **training.alike()}
    check_same_on_all_ranks(mesh.world, "data", read)
    with lock_run(run, registry, mesh):
        for artifact in run.inputs.all():
            if artifact.manifest.kind == "checkpoint":
                continue  # `start_weights` checks what it reads of it
            remembered = VerifiedFiles(registry.home, artifact.digest)
            check_files_together(artifact, mesh.side, remembered)
        known = None
        with fail_together(mesh.world):
            if mesh.first:
                known = _begin(run, training, registry, fresh)
        known = mesh.world.broadcast_object(known)
        if known is not None:
            return registry.get(known)
        with _marked(run, registry, mesh), deterministic(run.config.deterministic):
            training.prepare(run, registry, mesh)
            settings = settle_micro_batch(run.settings, run.folder(registry), anew=fresh)
            artifact = _train(replace(run, settings=settings), training, registry, mesh)
        if mesh.first:
            run.end_fresh(registry)
    return artifact


def _begin(run: Run, training: Training, registry: Registry, fresh: bool) -> str | None:
    """Make the run's folder and remove leftovers; the digest of its finished checkpoint, if any."""
    if fresh or run.finished(registry) is None:
        training.check_registered(run, registry)
    make_directory(run.folder(registry))
    if fresh:
        run.start_over(registry)
    known = run.finished(registry)
    if known is None:
        registry.sweep()
        registry.check_publishing("checkpoint", run.name)
    return known.digest if known else None


def _marked(run: Run, registry: Registry, mesh: Mesh) -> AbstractContextManager[None]:
    return mark_running(run.folder(registry)) if mesh.first else nullcontext()


def _train(run: Run, training: Training, registry: Registry, mesh: Mesh) -> Artifact:
    config, folder, roles = run.config, run.folder(registry), run.settings.models
    if mesh.first:
        replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
        _facts(run, training).write(folder)
    # Measuring the peak may draw random numbers; the seed is set after it.
    speed = speed_of(run, mesh)
    footprint = Footprint(run.settings, mesh.world.size)
    earlier, start = _load_newest(run, _earlier(run, registry, mesh), mesh)
    models = make_models(
        roles, config, run.parallel, mesh,
        weights=start_weights(run, mesh, resumes=start is not None), blank=start is not None,
    )  # fmt: skip
    _announce(run, training, start, folder)
    log = _log(run, folder, start, mesh)
    total = training.schedule.total
    with _closing(log), progress(run.name, total, "steps") as bar, stop_on_signals() as stop:
        check = _check(stop, mesh)
        artifact = Loop(
            models=TrainedModels.of(run.settings, models, training.schedule.learning_rate),
            stream=training.stream(config, models, check),
            schedule=training.schedule,
            speed=speed,
            guard=training.guard(),
            saver=_saver(run, training, registry, earlier, mesh),
            log=log,
            evaluate=training.evaluator(config, models, check),
            check_begin=partial(training.check_begin, config, models, check),
            progress=bar,
            stop=stop,
            resume_command=run.command,
            section=config.section,
        ).run(start)
        log.time("memory", step=total, **footprint.row())
        log.time("finish", step=total)
    return artifact


def _check(stop: Stop, mesh: Mesh) -> Callable[[], None]:
    """What a long wait calls to end early after a signal; several ranks stop between steps only."""
    return stop.check if mesh.world.size == 1 else lambda: None


def _earlier(run: Run, registry: Registry, mesh: Mesh) -> list[Artifact]:
    """The run's checkpoints to resume from, as the first rank sees them."""
    digests = [a.digest for a in run.checkpoints(registry)] if mesh.first else None
    found = mesh.world.broadcast_object(digests)
    assert found is not None
    return [registry.get(digest) for digest in found]


def _load_newest(
    run: Run, earlier: list[Artifact], mesh: Mesh
) -> tuple[list[Artifact], Snapshot | None]:
    """The newest checkpoint that is whole, and the list up to it.

    Raises:
        IntegrityError: there are checkpoints and none is whole.
    """
    roles = run.settings.further_roles
    for at in range(len(earlier), 0, -1):
        checkpoint = earlier[at - 1]
        try:
            with checkpoint.hold():
                return earlier[:at], Snapshot.load(checkpoint, mesh, roles)
        except IntegrityError as error:
            if at == 1:
                raise
            warn(f"{checkpoint.title} is not whole ({error}): going on from the one before")
    return [], None


def _log(run: Run, folder: Path, start: Snapshot | None, mesh: Mesh) -> Log:
    if not mesh.first:
        return NoLog()
    config = run.config
    trackers = make_trackers(config.track, folder, run=run.name, recipe=run.recipe)
    log = MetricsLog(folder, trackers)
    log.time(
        "resume" if start else "start",
        step=start.state.step if start else 0,
        deterministic=config.deterministic,
        threads=torch.get_num_threads(),
        micro_batch=config.micro_sequences,
        checkpointing=config.segment_layers,
        ranks=mesh.world.size,
    )
    return log


def _facts(run: Run, training: Training) -> RunFacts:
    """What watching and reporting need to know of the run beside its logs."""
    product = next(role for role in run.settings.models if role.trained)
    return RunFacts(
        name=run.name,
        key=run.key,
        steps=training.schedule.total,
        batch_tokens=run.config.step_tokens,
        sequence_length=run.config.sequence_length,
        clip_norm=(product.optimizer or run.config.optimizer).clip_norm,
        parents=tuple(artifact.digest for artifact in run.parents),
        metrics=run.algorithm.metrics,
    )


def _saver(
    run: Run, training: Training, registry: Registry, earlier: list[Artifact], mesh: Mesh
) -> Saver:
    every = training.schedule.checkpoint_every
    scheduled = [artifact for artifact in earlier if _step(artifact) % every == 0]
    return Saver(
        registry,
        _draft(run),
        run.settings.trained_configs,
        training.tokenizer,
        sequence_length=run.config.sequence_length,
        keep=run.config.keep_checkpoints,
        latest=earlier[-1] if earlier else None,
        anchor=scheduled[-1] if scheduled else None,
        on_publish=partial(run.made_again, registry),
        write_beside=partial(run.algorithm.write_beside, run),
        mesh=mesh,
    )


@contextmanager
def _closing(log: Log) -> Iterator[None]:
    try:
        yield
    finally:
        log.close()


def _draft(run: Run) -> Draft:
    return Draft(
        kind="checkpoint",
        name=run.name,
        key=run.key,
        parents=tuple(artifact.digest for artifact in run.parents),
        recipe=run.recipe,
        facts={"precision": run.config.precision, "device": run.config.device},
        role=run.algorithm.checkpoint_role(run.config),
    )


def _announce(run: Run, training: Training, start: Snapshot | None, folder: Path) -> None:
    total, trained = training.schedule.total, part_trained(run.settings.models)
    some = "" if trained is None else f" ({trained:,} trained)"
    note(
        f"{run.name}: {run.model.num_params():,} parameters{some}, {total:,} steps of "
        f"{training.extent()}; metrics in {folder}"
    )
    for line in training.announcements():
        note(line)
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")
