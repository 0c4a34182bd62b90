"""What a recipe says of a training run: its sections, resolved and checked once.

Imports no torch: a plan or a check needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig, check_language_head
from bc2.parallel.parallel_config import ParallelConfig, check_layout, parallel_of
from bc2.pipeline.table import check_sections
from bc2.ranks import name_launcher
from bc2.recipe import Recipe
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.train.duration import Duration
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.run_config import RunConfig, check_batches, check_context

#: Of the stage that trains a base model: raised when the same settings would train another one.
VERSION = 3


@dataclass(frozen=True)
class TrainingSettings:
    """[model], [pretrain] and [parallel], which fit each other."""

    name: str
    """Of the recipe, and of what it makes."""
    model: ModelConfig
    pretrain: PretrainConfig
    parallel: ParallelConfig
    recipe: Recipe = field(repr=False, compare=False)
    """Where they were read, for the places of errors."""

    @classmethod
    def of(cls, recipe: Recipe, *, trains: bool = True) -> TrainingSettings:
        """Read and check a recipe's sections.

        Args:
            trains: False for what does not train to the end, a plan or a measurement: only the
                shapes must fit then.

        Raises:
            RecipeError: one is missing or wrong, or two contradict each other; of what trains,
                also its name and the sections of earlier stages.
        """
        if trains:
            check_sections(recipe)
            check_training(recipe)
        else:
            check_context(recipe, PretrainConfig)
        return cls(
            name=recipe.name,
            model=recipe.get(ModelConfig),
            pretrain=recipe.get(PretrainConfig),
            parallel=parallel_of(recipe),
            recipe=recipe,
        )

    def check_ranks(self, world: int) -> None:
        """The model and the batch must divide among so many ranks.

        Raises:
            RecipeError: they do not; it names what would.
        """
        with name_launcher(world):
            check_layout(self.parallel, self.model, world, self.recipe.where(("parallel",)))
            check_batches(self.pretrain, self.parallel, world)

    def with_pretrain(self, **changed: Any) -> TrainingSettings:
        """The same with some settings of [pretrain] replaced."""
        return replace(self, pretrain=self.pretrain.model_copy(update=changed))

    def by_name(self) -> dict[str, Any]:
        return settings_by_name(self.pretrain, self.model)


def settings_by_name(config: RunConfig, model: ModelConfig) -> dict[str, Any]:
    """Every setting by its dotted name, but for where it runs and what it reads.

    Ranks must agree in these, also in those that change no result.
    """
    training = config.model_dump(mode="json", exclude={"device", "tokens"})
    named = {f"{config.section}.{name}": value for name, value in training.items()}
    shape = model.model_dump(mode="json")
    return named | {f"model.{name}": value for name, value in shape.items()}


def check_training(recipe: Recipe) -> None:
    """Sections about training must not contradict each other, on any machine.

    Raises:
        RecipeError: they do.
    """
    has_model, has_training = recipe.has(ModelConfig), recipe.has(PretrainConfig)
    if has_training:
        _check_warmup(recipe)
    # Of another recipe's tokens this one's tokenizer says nothing.
    own = not has_training or recipe.get(PretrainConfig).tokens is None
    if has_model and own and recipe.has(TokenizerConfig):
        _check_vocabulary(recipe)
    if has_model and has_training:
        check_context(recipe, PretrainConfig)
        check_language_head(recipe, "pretraining")


def _check_warmup(recipe: Recipe) -> None:
    """The warm-up ends within the run, as far as that is known without the data."""
    config = recipe.get(PretrainConfig)
    total, warmup = Duration.parse(config.length), config.schedule.warmup_length
    known = "epochs" not in (total.unit, warmup.unit)
    steps = [one.steps(batch_tokens=config.batch_tokens, epoch_tokens=0) for one in (warmup, total)]
    if (
        steps[0] >= steps[1]
        if known
        else total.unit == warmup.unit and warmup.amount >= total.amount
    ):
        raise RecipeError(
            f"the warm-up of {config.schedule.warmup} does not end within the run of "
            f"{config.length}",
            where=recipe.where(("pretrain", "schedule", "warmup")),
            todo="shorten the warm-up or lengthen the run",
        )


def _check_vocabulary(recipe: Recipe) -> None:
    model, pieces = recipe.get(ModelConfig), recipe.get(TokenizerConfig)
    if model.vocab_size < pieces.vocab_size:
        raise RecipeError(
            f"model.vocab_size = {model.vocab_size} is smaller than "
            f"tokenizer.vocab_size = {pieces.vocab_size}",
            where=recipe.where(("model", "vocab_size")),
            todo=f"set model.vocab_size = {pieces.vocab_size}",
        )
