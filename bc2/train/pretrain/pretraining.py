"""Pretraining: a base model learns the next token of its token shards (Baichuan 2 §2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bc2.console import warn
from bc2.data.source_names import check_source_weights
from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig, check_language_head
from bc2.pipeline.stage import Input, Inputs
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.tokenizer.tokenizer_files import tokenizer_name
from bc2.train.algorithm import INIT, Algorithm, Training
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.pretrain_metrics import PRETRAIN_METRICS
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from bc2.data.loader import Batch
    from bc2.train.guard import Guard
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.pretrain.heldout import Heldout
    from bc2.train.pretrain.token_stream import TokenStream
    from bc2.train.run import Run
    from bc2.train.training_settings import TrainingSettings


class Pretraining(Algorithm):
    """One model, the next token of documents packed into windows, a loss in nats a token."""

    section = PretrainConfig
    version = 3
    role = "base"
    metrics = PRETRAIN_METRICS
    inputs = (Input("tokens", lambda settings: settings.training.tokens),)  # type: ignore[attr-defined]

    def check(self, recipe: Recipe) -> None:
        if recipe.has(PretrainConfig) and recipe.has(ModelConfig):
            check_language_head(recipe, "pretraining")

    def check_inputs(self, recipe: Recipe) -> None:
        if recipe.has(PretrainConfig) and recipe.has(ModelConfig):
            weights = recipe.get(PretrainConfig).weights
            key = ("pretrain", "weights")
            check_source_weights(weights, recipe, "checkpoint", key, strata=True)

    def parents(self, inputs: Inputs, registry: Registry) -> tuple[Artifact, ...]:
        tokens, *others = inputs.all()
        return (tokens, parent_of_kind(registry, tokens, "tokenizer"), *others)

    def shortened(self, config: RunConfig, steps: int) -> dict[str, Any]:
        assert isinstance(config, PretrainConfig)
        return {
            "eval_tokens": min(config.eval_tokens, 8 * config.sequence_length),
            "sample_prompts": min(config.sample_prompts, 1),
            "sample_tokens": min(config.sample_tokens, 8),
        }

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from bc2.train.pretrain.next_token import NextToken

        assert isinstance(config, PretrainConfig)
        return NextToken(config.z_loss)

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        import numpy as np

        from bc2.data.loader import pack

        # No id ends a document: each row is one.
        shape = (sequences, settings.training.sequence_length + 1)
        rows = rng.integers(0, settings.model.vocab_size, shape)
        return pack(rows, np.zeros(sequences, dtype=np.int64), eos_id=-1)

    def open(self, run: Run) -> PretrainingRun:
        _check_vocabulary(run)
        _warn_of_another_tokenizer(run)
        return PretrainingRun(run)


class PretrainingRun(Training):
    """The token shards of a run, and what is read of them."""

    def __init__(self, run: Run):
        from bc2.train.pretrain.token_inputs import open_token_inputs

        assert isinstance(run.config, PretrainConfig)
        self.config = run.config
        self.data = open_token_inputs(run.config, *run.parents[:2])
        self.schedule, self.tokenizer = self.data.schedule, self.data.tokenizer

    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> TokenStream:
        from bc2.train.pretrain.token_stream import TokenStream

        return TokenStream.of(config, self.data, models.mesh, check)

    def guard(self) -> Guard[Any]:
        from bc2.train.loss_guard import LossGuard

        return LossGuard(self.config.guard, PRETRAIN_METRICS.guarded)

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> Heldout | None:
        from bc2.train.pretrain.heldout import Heldout

        assert isinstance(config, PretrainConfig)
        if not config.eval_tokens or not self.data.shards.sources("heldout"):
            return None
        objective = PRETRAINING.objective("model", config, models)
        return Heldout.of(config, self.data, models.product, objective, check)

    def extent(self) -> str:
        data, step = self.data, self.config.batch_tokens
        tokens = data.schedule.total * step
        epoch = sum(data.mixture.windows.values()) * self.config.sequence_length
        return f"{step:,} tokens = {tokens:,} tokens, {tokens / epoch:.2f} epochs of {epoch:,}"

    def announcements(self) -> Sequence[str]:
        from bc2.train.pretrain.token_inputs import mixture_lines

        return mixture_lines(self.config, self.data)


def _check_vocabulary(run: Run) -> None:
    """The embedding has a row for every id in the token shards."""
    tokens = run.parents[0]
    pieces = json.loads(tokens.file("tokens.json").read_text(encoding="utf-8"))["vocab_size"]
    if run.model.vocab_size < pieces:
        raise RecipeError(
            f"model.vocab_size = {run.model.vocab_size} is smaller than the {pieces} "
            f"pieces of the tokenizer of {tokens.title}",
            where=run.settings.recipe.where(("model", "vocab_size")),
            todo=f"set model.vocab_size = {pieces}",
        )


def _warn_of_another_tokenizer(run: Run) -> None:
    """Say if the ids of the token shards are not those that `init` was trained with.

    It may be meant, a new vocabulary for old layers. Where it is a mistake, nothing else shows it.
    """
    begun = run.inputs.get(INIT.name)
    if begun is None:
        return
    tokens, tokenizer = run.parents[:2]
    known, own = _tokenizer_digest(begun), _tokenizer_digest(tokenizer)
    if known not in (None, own):
        warn(
            f"{tokens.title} was made with {tokenizer.title}, which is not the tokenizer of "
            f"{begun.title}, that this run begins with: its ids may mean other texts there"
        )


def _tokenizer_digest(artifact: Artifact) -> str | None:
    name = tokenizer_name(artifact.files())
    return artifact.entry(name).sha256 if name is not None else None


PRETRAINING = Pretraining()
