"""`bc2 pretrain`: put the model, the data and the loop together, and go on from the last
complete checkpoint of the same run if there is one."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bc2.console import note, progress
from bc2.data.loader import Loader
from bc2.errors import RunFailed
from bc2.files import lock_directory, make_directory, replace_durably
from bc2.model.config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.checkpoint import Saver, Snapshot, reading_order
from bc2.train.config import PretrainConfig
from bc2.train.deterministic import deterministic
from bc2.train.device import peak_flops, pick_device, pick_precision
from bc2.train.engines.local import LocalEngine
from bc2.train.guard import Guard
from bc2.train.heldout import Heldout
from bc2.train.loop import Loop
from bc2.train.metrics import MetricsLog, open_trackers
from bc2.train.micro_batch import settle_micro_batch
from bc2.train.objective import NextToken, Objective
from bc2.train.plan import Plan, mixture_lines, prepare
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
    plan = prepare(run.config, run.tokens, run.tokenizer)
    with _alone(run, registry):
        make_directory(run.folder(registry))
        if fresh:
            run.start_over(registry)
        known = run.finished(registry)
        if known is not None:
            return known
        registry.sweep()
        with mark_running(run.folder(registry)), deterministic(run.config.deterministic):
            config = settle_micro_batch(run.model, run.config, run.folder(registry), anew=fresh)
            artifact = _train(replace(run, config=config), plan, registry)
        (run.folder(registry) / FRESH).unlink(missing_ok=True)
    return artifact


#: How long to try again when something else holds a run, seconds: it may only have looked.
_LOOKED_AT_S = 2.0


@contextmanager
def _alone(run: Run, registry: Registry) -> Iterator[None]:
    """Be the only process at a run. Raises: RunFailed if there is another one."""
    # By key, not by name: the same settings under two names are one run.
    lock = registry.work / f"pretrain-{run.key}"
    make_directory(lock)
    until = time.monotonic() + _LOOKED_AT_S
    while True:
        with lock_directory(lock) as mine:
            if mine:
                yield
                return
        if time.monotonic() > until:
            raise RunFailed(
                f"another process is training {run.name!r}",
                where=str(run.folder(registry)),
                todo="wait for it or stop it; two processes cannot go on with one run",
            )
        time.sleep(0.05)


def _train(run: Run, plan: Plan, registry: Registry) -> Artifact:
    config, folder = run.config, run.folder(registry)
    replace_durably(folder / "recipe.json", json.dumps(run.recipe, indent=2).encode())
    _facts(run, plan).write(folder)
    # Measuring the peak may draw random numbers; the seed is set after it.
    speed = _speed(run)
    engine = _engine(run)
    objective = NextToken(config.z_loss)
    earlier = run.checkpoints(registry)
    start = _load(earlier[-1]) if earlier else None
    _announce(run, plan, speed, start, folder)
    log = MetricsLog(folder)
    log.time(
        "resume" if start else "start",
        step=start.state.step if start else 0,
        deterministic=config.deterministic,
        threads=torch.get_num_threads(),
        micro_batch=config.micro_rows,
    )
    log.trackers = open_trackers(config.track, folder, run=run.name, recipe=run.recipe)
    total = plan.schedule.total
    with _closing(log), progress(run.name, total, "steps") as bar, stop_on_signals() as stop:
        artifact = Loop(
            engine=engine,
            objective=objective,
            stream=_stream(config, plan, stop),
            schedule=plan.schedule,
            speed=speed,
            guard=Guard(config.guard),
            saver=_saver(run, plan, registry, earlier),
            log=log,
            evaluate=_evaluator(config, plan, engine, objective, stop),
            progress=bar,
            stop=stop,
            resume_command=run.command,
        ).run(start)
        log.time("finish", step=total)
    return artifact


def _facts(run: Run, plan: Plan) -> RunFacts:
    """What watching and reporting the run need to know beside its rows."""
    return RunFacts(
        name=run.name,
        key=run.key,
        steps=plan.schedule.total,
        tokens_per_step=run.config.batch_tokens,
        tokens_per_sample=run.config.sequence_length,
        clip_norm=run.config.optimizer.clip_norm,
        parents=(run.tokens.digest, run.tokenizer.digest),
    )


def _load(checkpoint: Artifact) -> Snapshot:
    with checkpoint.hold():
        return Snapshot.load(checkpoint)


def _stream(config: PretrainConfig, plan: Plan, stop: Stop) -> TokenStream:
    shards = plan.shards
    loader = Loader(shards, "train", plan.mixture, config.sequence_length, shards.eos_id)
    return TokenStream(
        loader,
        config.batch_rows,
        config.micro_rows,
        timeout_s=config.data_timeout_s,
        check=stop.check,
    )


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
        on_publish=partial(run.renew, registry),
    )


@contextmanager
def _closing(log: MetricsLog) -> Iterator[None]:
    try:
        yield
    finally:
        log.close()


def _engine(run: Run) -> LocalEngine:
    config = run.config
    device = torch.device(config.device)
    torch.manual_seed(config.seed)
    model = Transformer(run.model)
    model.init_weights(torch.Generator().manual_seed(config.seed))
    precision = pick_precision(config.precision, device)
    return LocalEngine(
        model.to(device),
        config.optimizer,
        precision=precision,
        compile=config.compile,
        checkpointing=config.activation_checkpointing,
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
    for line in mixture_lines(run.config, plan):
        note(line)
    if start is not None:
        note(f"going on from step {start.state.step} of {total}")


def _evaluator(
    config: PretrainConfig, plan: Plan, engine: LocalEngine, objective: Objective, stop: Stop
) -> Heldout | None:
    if not config.eval_tokens or not plan.shards.sources("heldout"):
        return None
    return Heldout(
        engine,
        objective,
        plan.shards,
        Tokenizer.load(plan.tokenizer),
        sequence_length=config.sequence_length,
        micro_batch=config.micro_rows,
        tokens=config.eval_tokens,
        prompts=config.sample_prompts,
        new_tokens=config.sample_tokens,
        timeout_s=config.data_timeout_s,
        check=stop.check,
    )
