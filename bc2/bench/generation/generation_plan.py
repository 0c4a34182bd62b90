"""From a recipe and what was asked for to a plan of parts and contenders."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.bench.generation.job import CONTENDERS, PARTS, Job, Kind
from bc2.bench.generation.measure import GenerationPlan
from bc2.bench.generation.work import Encode, make_work
from bc2.bench.llama import left_out
from bc2.bench.spec import parse_names, parse_sizes
from bc2.console import note
from bc2.errors import UsageError
from bc2.generate.engine_config import EngineConfig
from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import SavedAdapter, base_of, holds_adapters
from bc2.registry import Artifact
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.device import pick_device
from bc2.train.precision import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


@dataclass(frozen=True)
class GenerationOptions:
    """The options that say what is measured."""

    only: str | None
    """Parts, comma-separated; None: all."""
    against: str | None
    """Peers, comma-separated, or "none"; None: all if transformers is installed."""
    sizes: str
    precision: str
    device: str
    rounds: int
    requests: int
    seed: int
    prompts: Path | None
    tokenizer: Path | None
    mmlu: Path | None
    subjects: int
    questions: int
    n: int
    max_running: int | None
    cache_mb: int | None


def make_generation_plan(
    model: ModelConfig, asked: GenerationOptions, *, checkpoint: Artifact | None = None
) -> GenerationPlan:
    """Resolve device, parts, contenders and the work; nothing is started.

    Args:
        checkpoint: has the weights of `model`, or adapters of them.

    Raises:
        UsageError: an option names something that is not known or not installed.
        DataError: a file of prompts or questions is not as it should be.
    """
    parts = PARTS if asked.only is None else parse_names(asked.only, PARTS, "--only")
    precisions = _precisions(asked.precision)
    job = Job(
        kind="bc2",
        model=model,
        **_stored(checkpoint),
        seed=asked.seed,
        precision=precisions[0],
        device=str(pick_device(asked.device)),
        engine=_engine(asked),
        work="",
    )
    return GenerationPlan(
        job,
        make_work(
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            requests=asked.requests,
            seed=asked.seed,
            prompts=asked.prompts,
            mmlu=asked.mmlu,
            subjects=asked.subjects,
            questions=asked.questions,
            encode=_encode(asked.tokenizer),
        ),
        parts=parts,
        contenders=("bc2", *_peers(model, asked.against)) if "decode" in parts else ("bc2",),
        precisions=precisions,
        sizes=_sizes(asked.sizes),
        tried_requests=max(asked.requests // 2, 1),
        rounds=asked.rounds,
        n=asked.n,
    )


def _stored(checkpoint: Artifact | None) -> dict[str, Any]:
    """Where a worker finds the weights of a checkpoint, as fields of a `Job`."""
    if checkpoint is None:
        return {}
    if not holds_adapters(checkpoint):
        return {"checkpoint": str(checkpoint.path)}
    return {
        "checkpoint": str(base_of(checkpoint).path),
        "adapter": str(checkpoint.path),
        "lora": SavedAdapter.of(checkpoint).lora,
    }


def _precisions(text: str) -> tuple[Precision, ...]:
    names = parse_names(text, PRECISIONS, "--precision")
    return tuple(name for name in PRECISIONS if name in names)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = parse_sizes(text, "--sizes")
    if 0 in sizes:
        raise UsageError("--sizes has 0 sequences together", todo="write numbers such as 8,32")
    return sizes


def _engine(asked: GenerationOptions) -> EngineConfig:
    found: dict[str, int] = {}
    if asked.max_running is not None:
        found["max_running"] = asked.max_running
    if asked.cache_mb is not None:
        found["cache_bytes"] = asked.cache_mb * 10**6
    return EngineConfig(**found)


def _encode(path: Path | None) -> Encode | None:
    return None if path is None else Tokenizer.load(path).encode


def _peers(model: ModelConfig, against: str | None) -> tuple[Kind, ...]:
    if against == "none":
        return ()
    installed = importlib.util.find_spec("transformers") is not None
    if against is None and not installed:
        note("transformers is not installed: bc2 is measured alone")
        return ()
    if not installed:
        raise UsageError(
            "--against needs transformers, which is not installed", todo="pip install transformers"
        )
    peers: tuple[Kind, ...] = CONTENDERS[1:]
    names = peers if against is None else parse_names(against, peers, "--against")
    if model.position != "rope":
        note(f"transformers' Llama has rotary positions where this model has {model.position}")
    if (has := left_out(model)) is not None:
        note(f"transformers' Llama is measured without what this model has: {has}")
    return tuple(peer for peer in peers if peer in names)
