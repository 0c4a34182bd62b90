"""`bc2 pretrain`: put the model, the data and the loop together, and go on from the last
complete checkpoint of the same run if there is one."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bc2.console import note, progress
from bc2.data.loader import Batch, Loader, heldout_batches
from bc2.data.mixture import Mixture
from bc2.data.shards import TokenShards
from bc2.errors import RecipeError, RunFailed
from bc2.files import lock_directory, make_directory, replace_durably
from bc2.model.config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.config import TOKENIZER_FILE
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.checkpoint import Saver, Snapshot, reading_order
from bc2.train.config import PretrainConfig
from bc2.train.device import peak_flops, pick_device, pick_precision
from bc2.train.duration import Duration
from bc2.train.engines.local import LocalEngine
from bc2.train.guard import Guard
from bc2.train.loop import Loop, Schedule, Speed
from bc2.train.metrics import METRICS, MetricsLog, check_trackers, open_trackers, read_rows
from bc2.train.objective import NextToken, Objective
from bc2.train.plot import plot_run
from bc2.train.schedule import learning_rate
from bc2.train.signals import stop_on_signals
from bc2.train.stream import TokenStream

#: Raised when the same settings would train another model.
VERSION = 1


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

    @classmethod
    def plan(
        cls, name: str, config: PretrainConfig, model: ModelConfig, tokens: Artifact,
        tokenizer: Artifact, recipe: Mapping[str, Any], command: list[str],
    ) -> Run:  # fmt: skip
        """Resolve what the machine decides, so that it is part of the key."""
        device = pick_device(config.device)
        precision = pick_precision(config.precision, device)
        config = config.model_copy(update={"precision": precision, "device": str(device)})
        return cls(name, config, model, tokens, tokenizer, recipe, shlex.join(command))

    @property
    def key(self) -> str:
        settings = {"pretrain": self.config.keyed(), "model": self.model.keyed()}
        return stage_key("checkpoint", VERSION, settings, (self.tokens.digest,))

    def folder(self, registry: Registry) -> Path:
        """Where the run's metrics, plots and trackers live."""
        return registry.runs / f"{self.name}-{self.key[:12]}"

    def _fresh_since(self, registry: Registry) -> str:
        """When an unfinished ``--fresh`` began, as the registry writes times; else ""."""
        marker = self.folder(registry) / FRESH
        return marker.read_text() if marker.exists() else ""

    def finished(self, registry: Registry) -> Artifact | None:
        """The run's finished checkpoint, unless training it anew was begun and not ended."""
        if self._fresh_since(registry):
            return None
        return registry.find("checkpoint", self.key, finished=True)

    def checkpoints(self, registry: Registry) -> list[Artifact]:
        """Unfinished checkpoints to go on from, the furthest last.

        By tokens read, not by steps: a rollback takes the step back and never the data.
        """
        since = self._fresh_since(registry)
        mine = [
            artifact
            for artifact in registry.list("checkpoint")
            if artifact.key == self.key and not artifact.finished and artifact.created >= since
        ]
        return sorted(mine, key=reading_order)

    def start_over(self, registry: Registry) -> None:
        """Mark the run as begun anew, and unregister what it must not go on from."""
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        replace_durably(self.folder(registry) / FRESH, now.encode())
        for artifact in registry.list("checkpoint"):
            if artifact.key == self.key and not artifact.finished and not artifact.tags:
                registry.remove(artifact)


#: In a run's folder: since when it is being trained anew although it was finished before.
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
    plan = _prepare(run)
    # By key, not by name: the same settings under two names are one run.
    lock = registry.work / f"pretrain-{run.key}"
    make_directory(lock)
    with lock_directory(lock) as mine:
        if not mine:
            raise RunFailed(
                f"another process is training {run.name!r}",
                where=str(run.folder(registry)),
                todo="wait for it or stop it; two processes cannot go on with one run",
            )
        make_directory(run.folder(registry))
        if fresh:
            run.start_over(registry)
        known = run.finished(registry)
        if known is not None:
            return known
        registry.sweep()
        artifact = _train(run, plan, registry)
        (run.folder(registry) / FRESH).unlink(missing_ok=True)
    draw(run, registry)
    return artifact


def draw(run: Run, registry: Registry) -> None:
    """The curves of a finished run, if they are not drawn or older than its metrics."""
    folder = run.folder(registry)
    metrics, plot = folder / METRICS, folder / "loss.svg"
    if not metrics.exists():
        return
    if not plot.exists() or plot.stat().st_mtime < metrics.stat().st_mtime:
        plot_run(list(read_rows(metrics)), folder, f"{run.name}: {run.config.length}")


@dataclass(frozen=True)
class Plan:
    """What a run reads and when it does what; made before anything is written."""

    shards: TokenShards
    mixture: Mixture
    schedule: Schedule
    tokenizer: Path


def _prepare(run: Run) -> Plan:
    shards = _open_tokens(run.tokens)
    mixture = _mixture(shards, run.config)
    schedule = _schedule(run.config, mixture)
    check_trackers(run.config.track)
    return Plan(shards, mixture, schedule, run.tokenizer.file(TOKENIZER_FILE))


def _train(run: Run, plan: Plan, registry: Registry) -> Artifact:
    config, folder = run.config, run.folder(registry)
    replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
    engine = _engine(run)
    objective = NextToken(config.z_loss)
    speed = _speed(run)
    earlier = run.checkpoints(registry)
    start = _load(earlier[-1]) if earlier else None
    _announce(run, plan, speed, start, folder)
    log = MetricsLog(folder)
    log.time("resume" if start else "start", step=start.state.step if start else 0)
    log.trackers = open_trackers(config.track, folder, run=run.name, recipe=run.recipe)
    total = plan.schedule.total
    with _closing(log), progress(run.name, total, "steps") as bar, stop_on_signals() as stop:
        return Loop(
            engine=engine,
            objective=objective,
            stream=_stream(config, plan),
            schedule=plan.schedule,
            speed=speed,
            guard=Guard(config.guard),
            saver=_saver(run, plan, registry, earlier),
            log=log,
            evaluate=_evaluator(config, plan, engine, objective),
            progress=bar,
            stop=stop,
            resume_command=run.command,
        ).run(start)


def _load(checkpoint: Artifact) -> Snapshot:
    with checkpoint.hold():
        return Snapshot.load(checkpoint)


def _stream(config: PretrainConfig, plan: Plan) -> TokenStream:
    shards = plan.shards
    loader = Loader(shards, "train", plan.mixture, config.sequence_length, shards.eos_id)
    return TokenStream(loader, config.batch_rows, config.micro_batch)


def _saver(run: Run, plan: Plan, registry: Registry, earlier: list[Artifact]) -> Saver:
    every = plan.schedule.checkpoint_every
    scheduled = [artifact for artifact in earlier if _step(artifact) % every == 0]
    return Saver(
        registry,
        _draft(run),
        run.model,
        plan.tokenizer,
        tokens_per_sample=run.config.sequence_length,
        keep=run.config.keep_checkpoints,
        latest=earlier[-1] if earlier else None,
        anchor=scheduled[-1] if scheduled else None,
    )


@contextmanager
def _closing(log: MetricsLog) -> Iterator[None]:
    try:
        yield
    finally:
        log.close()


def _open_tokens(tokens: Artifact) -> TokenShards:
    """Open token shards after checking every file against its digest."""
    for name in tokens.files():
        tokens.file(name)
    return TokenShards.open(tokens.path)


def _mixture(shards: TokenShards, config: PretrainConfig) -> Mixture:
    windows = {
        source: (shards.num_tokens("train", source) - 1) // config.sequence_length
        for source in shards.sources("train")
    }
    return Mixture(windows, config.weights or None, config.seed)


def _steps(config: PretrainConfig, length: str, mixture: Mixture) -> int:
    epoch = sum(mixture.windows.values()) * config.sequence_length
    return Duration.parse(length).steps(batch_tokens=config.batch_tokens, epoch_tokens=epoch)


def _engine(run: Run) -> LocalEngine:
    config = run.config
    device = torch.device(config.device)
    torch.manual_seed(config.seed)
    model = Transformer(run.model)
    model.init_weights(torch.Generator().manual_seed(config.seed))
    precision = pick_precision(config.precision, device)
    return LocalEngine(
        model.to(device), config.optimizer, precision=precision, compile=config.compile
    )


def _schedule(config: PretrainConfig, mixture: Mixture) -> Schedule:
    total = _steps(config, config.length, mixture)
    warmup = _steps(config, config.schedule.warmup, mixture)
    if warmup >= total:
        raise RecipeError(
            f"the warm-up of {warmup} steps does not end within the run of {total}",
            where="pretrain.schedule.warmup",
            todo="shorten the warm-up or lengthen the run",
        )

    def rate(step: int) -> float:
        return learning_rate(
            step,
            peak=config.optimizer.learning_rate,
            warmup=warmup,
            total=total,
            min_ratio=config.schedule.min_ratio,
        )

    return Schedule(
        total=total,
        checkpoint_every=_steps(config, config.checkpoint_every, mixture),
        eval_every=_steps(config, config.eval_every, mixture),
        log_every=config.log_every,
        learning_rate=rate,
        clip_norm=config.optimizer.clip_norm,
    )


def _speed(run: Run) -> Speed:
    config = run.config
    device = torch.device(config.device)
    peak, source = peak_flops(device, pick_precision(config.precision, device))
    note(f"{device}, {config.precision}: peak {peak / 1e12:.2f} TFLOP/s ({source})")
    return Speed(config.batch_tokens, run.model.flops_per_token(config.sequence_length), peak)


def _draft(run: Run) -> Draft:
    return Draft(
        kind="checkpoint",
        name=run.name,
        key=run.key,
        parents=(run.tokens.digest, run.tokenizer.digest),
        recipe=run.recipe,
        facts={"precision": run.config.precision, "device": run.config.device},
    )


def _announce(run: Run, plan: Plan, speed: Speed, start: Snapshot | None, folder: Path) -> None:
    total = plan.schedule.total
    tokens = total * speed.tokens_per_step
    epoch = sum(plan.mixture.windows.values()) * run.config.sequence_length
    note(
        f"{run.name}: {run.model.num_params():,} parameters, {total:,} steps of "
        f"{speed.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{tokens / epoch:.2f} epochs of {epoch:,}; metrics in {folder}"
    )
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")


def _evaluator(
    config: PretrainConfig, plan: Plan, engine: LocalEngine, objective: Objective
) -> Callable[[], dict[str, float]] | None:
    shards = plan.shards
    if not config.eval_tokens or not shards.sources("heldout"):
        return None
    limit = max(1, config.eval_tokens // (config.sequence_length * config.micro_batch))
    piece_bytes = Tokenizer.load(plan.tokenizer).piece_bytes

    def evaluate() -> dict[str, float]:
        batches = heldout_batches(shards, config.sequence_length, config.micro_batch)
        return heldout_loss(engine, objective, batches, piece_bytes, limit)

    return evaluate


@torch.no_grad()
def heldout_loss(
    engine: LocalEngine,
    objective: Objective,
    batches: Iterator[Batch],
    piece_bytes: np.ndarray[Any, np.dtype[np.int32]],
    limit: int,
) -> dict[str, float]:
    """Held-out cross-entropy of the training-precision model.

    Returns:
        ``heldout_loss`` in nats a token, ``bits_per_byte`` over the bytes of the predicted
        tokens (an end of document has none), ``heldout_tokens``.
    """
    nats, tokens, size = 0.0, 0, 0
    for _, batch in zip(range(limit), batches, strict=False):
        nats += float(objective(engine.model, batch).sums["ce"].double())
        labels = batch.labels[batch.labels >= 0]
        tokens += len(labels)
        size += int(piece_bytes[labels].sum())
    if not tokens or not size:
        raise RunFailed("the held-out split has no token to predict", todo="set eval_tokens = 0")
    return {
        "heldout_loss": nats / tokens,
        "bits_per_byte": nats / size / math.log(2),
        "heldout_tokens": tokens,
    }
