"""`bc2 pretrain`: put the model, the data and the loop together, and resume from the run's last
complete checkpoint if there is one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from bc2.console import note, progress, warn
from bc2.data.loader import Loader
from bc2.errors import IntegrityError
from bc2.files import make_directory, replace_durably
from bc2.parallel.agreement import check_shared_folder, fail_together
from bc2.parallel.file_check import check_files_together
from bc2.parallel.mesh import Mesh
from bc2.registry import Artifact, Draft, Registry
from bc2.registry.verified import VerifiedFiles
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.allocator import use_expandable_segments
from bc2.train.checkpoint import Saver, Snapshot
from bc2.train.deterministic import deterministic
from bc2.train.device import pick_precision
from bc2.train.engines.base import Engine
from bc2.train.engines.make import make_engine
from bc2.train.guard import Guard
from bc2.train.loop import Loop
from bc2.train.memory.measured import Footprint
from bc2.train.micro_batch import settle_micro_batch
from bc2.train.objective import Objective
from bc2.train.peak_flops import STEP, KeptPeaks, Peak, keep_peak, peak_flops
from bc2.train.precision import Precision
from bc2.train.pretrain.heldout import Heldout
from bc2.train.pretrain.next_token import NextToken
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import RunInputs, mixture_lines, open_run_inputs
from bc2.train.pretrain.token_stream import TokenStream
from bc2.train.rendezvous import explain_lost_rank, join_ranks, lock_run
from bc2.train.run import Run
from bc2.train.run_log import Log, MetricsLog, NoLog
from bc2.train.runs import RunFacts, mark_running
from bc2.train.schedule import Speed
from bc2.train.signals import Stop, stop_on_signals
from bc2.train.trackers import make_trackers


def _step(artifact: Artifact) -> int:
    return artifact.position.step if artifact.position else 0


def pretrain(run: Run, registry: Registry, *, fresh: bool = False) -> Artifact:
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
    with explain_lost_rank(mesh.world):
        return _pretrain(run, registry, mesh, fresh)


def _pretrain(run: Run, registry: Registry, mesh: Mesh, fresh: bool) -> Artifact:
    make_directory(registry.work)
    check_shared_folder(registry.work, mesh.world)
    with fail_together(mesh.world):
        inputs = open_run_inputs(run.config, run.tokens, run.tokenizer)
    with lock_run(run, registry, mesh):
        remembered = VerifiedFiles(registry.home, run.tokens.digest)
        check_files_together(run.tokens, mesh.side, remembered)
        known = None
        with fail_together(mesh.world):
            if mesh.first:
                known = _begin(run, registry, fresh)
        known = mesh.world.broadcast_object(known)
        if known is not None:
            return registry.get(known)
        with _marked(run, registry, mesh), deterministic(run.config.deterministic):
            config = settle_micro_batch(run.model, run.config, run.folder(registry), anew=fresh)
            artifact = _train(replace(run, config=config), inputs, registry, mesh)
        if mesh.first:
            run.end_fresh(registry)
    return artifact


def _begin(run: Run, registry: Registry, fresh: bool) -> str | None:
    """Make the run's folder and remove leftovers; the digest of its finished checkpoint, if any."""
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


def _train(run: Run, inputs: RunInputs, registry: Registry, mesh: Mesh) -> Artifact:
    config, folder = run.config, run.folder(registry)
    if mesh.first:
        replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
        _facts(run, inputs).write(folder)
    # Measuring the peak may draw random numbers; the seed is set after it.
    speed = _speed(run, mesh)
    footprint = Footprint(run.model, config, run.parallel, mesh.world.size)
    earlier, start = _load_newest(_earlier(run, registry, mesh), mesh)
    engine = make_engine(run.model, config, run.parallel, mesh, blank=start is not None)
    objective = NextToken(config.z_loss)
    _announce(run, inputs, speed, start, folder)
    log = _log(run, folder, start, mesh)
    total = inputs.schedule.total
    with _closing(log), progress(run.name, total, "steps") as bar, stop_on_signals() as stop:
        artifact = Loop(
            engine=engine,
            objective=objective,
            stream=_stream(config, inputs, _check(stop, mesh), mesh),
            schedule=inputs.schedule,
            speed=speed,
            guard=Guard(config.guard),
            saver=_saver(run, inputs, registry, earlier, mesh),
            log=log,
            evaluate=_evaluator(config, inputs, engine, objective, _check(stop, mesh)),
            progress=bar,
            stop=stop,
            resume_command=run.command,
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


def _facts(run: Run, inputs: RunInputs) -> RunFacts:
    """What watching and reporting need to know of the run beside its logs."""
    return RunFacts(
        name=run.name,
        key=run.key,
        steps=inputs.schedule.total,
        batch_tokens=run.config.batch_tokens,
        sequence_length=run.config.sequence_length,
        clip_norm=run.config.optimizer.clip_norm,
        parents=(run.tokens.digest, run.tokenizer.digest),
    )


def _stream(
    config: PretrainConfig, inputs: RunInputs, check: Callable[[], None], mesh: Mesh
) -> TokenStream:
    shards = inputs.shards
    loader = Loader(shards, "train", inputs.mixture, config.sequence_length, shards.eos_id)
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
    run: Run, inputs: RunInputs, registry: Registry, earlier: list[Artifact], mesh: Mesh
) -> Saver:
    every = inputs.schedule.checkpoint_every
    scheduled = [artifact for artifact in earlier if _step(artifact) % every == 0]
    return Saver(
        registry,
        _draft(run),
        run.model,
        inputs.tokenizer,
        sequence_length=run.config.sequence_length,
        keep=run.config.keep_checkpoints,
        latest=earlier[-1] if earlier else None,
        anchor=scheduled[-1] if scheduled else None,
        on_publish=partial(run.made_again, registry),
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
        role="base",
    )


def _announce(
    run: Run, inputs: RunInputs, speed: Speed, start: Snapshot | None, folder: Path
) -> None:
    total = inputs.schedule.total
    tokens = total * speed.batch_tokens
    epoch = sum(inputs.mixture.windows.values()) * run.config.sequence_length
    note(
        f"{run.name}: {run.model.num_params():,} parameters, {total:,} steps of "
        f"{speed.batch_tokens:,} tokens = {tokens:,} tokens, "
        f"{tokens / epoch:.2f} epochs of {epoch:,}; metrics in {folder}"
    )
    for line in mixture_lines(run.config, inputs):
        note(line)
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")


def _evaluator(
    config: PretrainConfig,
    inputs: RunInputs,
    engine: Engine,
    objective: Objective,
    check: Callable[[], None],
) -> Heldout | None:
    if not config.eval_tokens or not inputs.shards.sources("heldout"):
        return None
    return Heldout(
        engine,
        objective,
        inputs.shards,
        Tokenizer.load(inputs.tokenizer),
        sequence_length=config.sequence_length,
        micro_batch=config.micro_sequences,
        tokens=config.eval_tokens,
        prompts=config.sample_prompts,
        new_tokens=config.sample_tokens,
        timeout_s=config.data_timeout_s,
        check=check,
    )
