"""From a recipe and what was asked for to a plan of contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bc2.bench.llama import left_out
from bc2.bench.measure import BenchPlan
from bc2.bench.peer import require_peer
from bc2.bench.spec import (
    OURS,
    PEERS,
    PEERS_ALGORITHM,
    Spec,
    default_peers,
    parse_names,
    parse_sizes,
    weights_of,
)
from bc2.console import note
from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig, check_language_head
from bc2.recipe import Recipe
from bc2.train.device import datasheet_flops, pick_compile, pick_device, pick_precision
from bc2.train.memory.estimate import settle_checkpointing
from bc2.train.micro_batch import choose_micro_batch
from bc2.train.rank_layout import check_divides, parse_layout, recipe_layout
from bc2.train.run_config import RunConfig
from bc2.train.training_settings import TrainingSettings


def make_bench_plan(
    recipe: Recipe, *, steps: int, rounds: int, against: str | None, peers: str | None,
    ours: str | None, layouts: Sequence[str], checkpointing: str | None, peer_environment: str,
    documents: int, checkpoint: bool,
) -> BenchPlan:  # fmt: skip
    """Resolve device, precision and contenders; nothing is started.

    Raises:
        UsageError: an option names something that is not known or not installed.
        RecipeError: a section is missing or broken.
    """
    settings = TrainingSettings.of(recipe, trains=False)
    if settings.algorithm.name == PEERS_ALGORITHM:
        check_language_head(recipe, "a benchmark of pretraining")
    else:
        _check_made(settings, against, documents)
    settings = _resolved(settings)
    model, training = settings.model, settings.training
    specs = _ours(settings, ours, checkpointing)
    specs += _laid_out(settings, layouts)
    if against:
        require_peer()
        specs += _peers(model, training, peers, tuned=peer_environment == "same")
    device = torch.device(training.device)
    known = datasheet_flops(device, pick_precision(training.precision, device))
    return BenchPlan(
        tuple(specs),
        steps=steps,
        rounds=rounds,
        documents=documents,
        saves=rounds if checkpoint else 0,
        datasheet=known[0] if known else None,
    )


def _check_made(settings: TrainingSettings, against: str | None, documents: int) -> None:
    """What only pretraining has is not asked for, and the recipe is one of its algorithm.

    Raises:
        UsageError: a peer, or packed documents.
        RecipeError: sections contradict each other.
    """
    name = settings.algorithm.name
    if against:
        raise UsageError(
            f"--against {against} trains the next token, and this recipe trains [{name}]",
            todo="leave out --against, or measure a recipe of [pretrain]",
        )
    if documents:
        raise UsageError(
            f"--documents is for token shards, and [{name}] makes batches of its own",
            todo="leave out --documents",
        )
    settings.algorithm.check(settings.recipe)


def _resolved(settings: TrainingSettings) -> TrainingSettings:
    """With what the machine decides: device, precision, and "auto" as numbers."""
    model, training = settings.model, settings.training
    device = pick_device(training.device)
    precision = pick_precision(training.precision, device)
    compiles = pick_compile(training.compile, device)
    training = training.model_copy(
        update={"device": str(device), "precision": precision, "compile": compiles}
    )
    training = settle_checkpointing(model, training)
    if training.micro_batch == "auto":
        choice = choose_micro_batch(replace(settings, training=training))
        note(str(choice))
        training = training.model_copy(update={"micro_batch": choice.micro_batch})
    return replace(settings, training=training)


def _ours(settings: TrainingSettings, ours: str | None, checkpointing: str | None) -> list[Spec]:
    model, training = settings.model, settings.training
    default = "compiled" if training.compile else "eager"
    ways = parse_names(default if ours is None else ours, OURS, "--ours")
    series: tuple[int, ...] = (training.segment_layers,)
    if checkpointing is not None:
        series = parse_sizes(checkpointing, "--checkpointing")
    return [
        Spec(
            name=f"bc2-{way}" + (f"-checkpointing-{size}" if size or len(series) > 1 else ""),
            kind="bc2",
            algorithm=settings.algorithm.name,
            model=model,
            training=training.model_copy(
                update={"compile": way == "compiled", "activation_checkpointing": size}
            ),
            shards="",
        )
        for way in ways
        for size in series
    ]


def _laid_out(settings: TrainingSettings, layouts: Sequence[str]) -> list[Spec]:
    """The recipe over ranks, as `--layout` says."""
    model, training = settings.model, settings.training
    base = replace(recipe_layout(settings, 1), micro_batch=training.micro_sequences)
    found = [parse_layout(settings, base, text) for text in dict.fromkeys(layouts)]
    for layout in found:
        check_divides(settings, layout)
        if layout.micro_batch != training.micro_sequences:
            note(f"{layout}: micro-batches of {layout.micro_batch}, for a rank's share of a step")
    return [
        Spec(
            name=f"bc2-{layout.typed}",
            kind="bc2",
            algorithm=settings.algorithm.name,
            model=model,
            training=training.model_copy(update={"micro_batch": layout.micro_batch}),
            shards="",
            ranks=layout.ranks,
            parallel=layout.parallel,
        )
        for layout in found
    ]


def _peers(
    model: ModelConfig, training: RunConfig, peers: str | None, *, tuned: bool
) -> list[Spec]:
    precision = pick_precision(training.precision, torch.device(training.device))
    names = default_peers(precision) if peers is None else parse_names(peers, PEERS, "--peers")
    if model.position != "rope":
        note(f"transformers' Llama has rotary positions where the recipe has {model.position}")
    if (has := left_out(model)) is not None:
        note(f"transformers' Llama is measured without what the recipe has: {has}")
    return [
        Spec(
            name=f"hf-{name}",
            kind="hf",
            algorithm=PEERS_ALGORITHM,
            model=model,
            training=training.model_copy(update={"compile": name.endswith("compiled")}),
            shards="",
            weights=weights_of(name),
            tuned=tuned,
        )
        for name in names
    ]
