"""`bc2 pretrain`: put the model, the data and the loop together, and go on from the last
complete checkpoint of the same run if there is one."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.checkpoint import TOKENIZER, Saver, Snapshot
from bc2.train.config import PretrainConfig
from bc2.train.device import peak_flops, pick_device, pick_precision
from bc2.train.duration import Duration
from bc2.train.engines.local import LocalEngine
from bc2.train.guard import Guard
from bc2.train.loop import Loop, Schedule, Speed
from bc2.train.metrics import METRICS, MetricsLog, open_trackers, read_rows
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
        for upstream in ("tokens",):
            settings["pretrain"].pop(upstream, None)
        return stage_key("checkpoint", VERSION, settings, (self.tokens.digest,))

    def folder(self, registry: Registry) -> Path:
        """Where the run's metrics, plots and trackers live."""
        return registry.runs / f"{self.name.replace('/', '-')}-{self.key[:12]}"


def finished(run: Run, registry: Registry) -> Artifact | None:
    """The run's finished checkpoint, if it was trained before."""
    return registry.find("checkpoint", run.key, finished=True)


def pretrain(run: Run, registry: Registry, *, fresh: bool = False) -> Artifact:
    """Train, or go on training, and return the finished checkpoint.

    Args:
        fresh: start over even if there are checkpoints of the same run.

    Raises:
        RunFailed: another process is at the same run, or too many bad steps.
        Interrupted: a signal stopped it; everything is saved.
    """
    folder = run.folder(registry)
    make_directory(folder)
    with lock_directory(folder) as mine:
        if not mine:
            raise RunFailed(
                f"another process is training {run.name!r}",
                where=str(folder),
                todo="wait for it or stop it; two processes cannot go on with one run",
            )
        if fresh:
            _forget(run, registry)
        registry.sweep()
        return _train(run, registry, folder)


def _forget(run: Run, registry: Registry) -> None:
    """Unregister the run's unfinished checkpoints, which a fresh start must not go on from."""
    for artifact in registry.list("checkpoint"):
        if artifact.key == run.key and not artifact.finished:
            registry.remove(artifact)


def _train(run: Run, registry: Registry, folder: Path) -> Artifact:
    config = run.config
    shards = _open_tokens(run.tokens)
    mixture = _mixture(shards, config)
    tokenizer_file = run.tokenizer.file(TOKENIZER)
    total = _steps(config, config.length, mixture)
    replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
    engine = _engine(run)
    objective = NextToken(config.z_loss)
    latest = registry.find("checkpoint", run.key, finished=False)
    start = Snapshot.load(latest) if latest else None
    log = MetricsLog(folder, open_trackers(config.track, folder, run=run.name, recipe=run.recipe))
    speed = _speed(run)
    _announce(run, total, mixture, speed, start, folder)
    log.time("resume" if start else "start", step=start.state.step if start else 0)
    saver = Saver(
        registry, _draft(run), run.model, tokenizer_file,
        tokens_per_sample=config.sequence_length, keep=config.keep_checkpoints, latest=latest,
    )  # fmt: skip
    loader = Loader(shards, "train", mixture, config.sequence_length, shards.eos_id)
    with stop_on_signals() as stop, progress(run.name, total, "steps") as bar, _closing(log):
        artifact = Loop(
            engine=engine,
            objective=objective,
            stream=TokenStream(loader, config.batch_rows, config.micro_batch),
            schedule=_schedule(config, total, mixture),
            speed=speed,
            guard=Guard(config.guard),
            saver=saver,
            log=log,
            evaluate=_evaluator(config, shards, engine, objective, tokenizer_file),
            progress=bar,
            stop=stop,
            resume_command=run.command,
        ).run(start)
    plot_run(list(read_rows(folder / METRICS)), folder, f"{run.name}: {total} steps")
    return artifact


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


def _schedule(config: PretrainConfig, total: int, mixture: Mixture) -> Schedule:
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


def _announce(
    run: Run, total: int, mixture: Mixture, speed: Speed, start: Snapshot | None, folder: Path
) -> None:
    tokens = total * speed.tokens_per_step
    epoch = sum(mixture.windows.values()) * run.config.sequence_length
    note(
        f"{run.name}: {run.model.num_params():,} parameters, {total:,} steps of "
        f"{speed.tokens_per_step:,} tokens = {tokens:,} tokens, "
        f"{tokens / epoch:.2f} epochs of {epoch:,}; metrics in {folder}"
    )
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")


def _evaluator(
    config: PretrainConfig, shards: TokenShards, engine: LocalEngine, objective: Objective,
    tokenizer_file: Path,
) -> Callable[[], dict[str, float]] | None:  # fmt: skip
    if not config.eval_tokens or not shards.sources("heldout"):
        return None
    limit = max(1, config.eval_tokens // (config.sequence_length * config.micro_batch))
    piece_bytes = Tokenizer.load(tokenizer_file).piece_bytes

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
