"""What a recipe says of a training run: its sections, resolved and checked once.

Imports no torch: a plan or a check needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bc2.data.corpus_config import TokensConfig
from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig, check_layout, parallel_of
from bc2.pipeline.table import algorithm_named, check_sections, training_section
from bc2.ranks import name_launcher
from bc2.recipe import Recipe
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.train.algorithm import Algorithm, ModelRole
from bc2.train.duration import Duration
from bc2.train.memory.run_memory import saved_bytes
from bc2.train.run_config import RunConfig, check_batches, check_context


@dataclass(frozen=True)
class TrainingSettings:
    """[model], [parallel] and the section of an algorithm, which fit each other."""

    name: str
    """Of the recipe, and of what it makes."""
    algorithm: Algorithm
    model: ModelConfig
    training: RunConfig
    """The algorithm's section."""
    parallel: ParallelConfig
    recipe: Recipe = field(repr=False, compare=False)
    """Where they were read, for the places of errors."""

    @classmethod
    def of(
        cls, recipe: Recipe, *, algorithm: Algorithm | None = None, trains: bool = True
    ) -> TrainingSettings:
        """Read and check a recipe's sections.

        Args:
            algorithm: which trains; None: the one whose section the recipe has.
            trains: False for what does not train to the end, a plan or a measurement: only the
                shapes must fit then.

        Raises:
            RecipeError: one is missing or wrong, or two contradict each other; of what trains,
                also its name and the sections of earlier stages.
        """
        if algorithm is None:
            algorithm = algorithm_named(training_section(recipe))
        _check_model(recipe, algorithm.section)
        if trains:
            check_sections(recipe)
            check_training(recipe, algorithm)
        else:
            check_context(recipe, algorithm.section)
        return cls(
            name=recipe.name,
            algorithm=algorithm,
            model=algorithm.trained_shape(recipe.get(ModelConfig)),
            training=recipe.get(algorithm.section),
            parallel=parallel_of(recipe),
            recipe=recipe,
        )

    @property
    def models(self) -> tuple[ModelRole, ...]:
        """The models of the run; the first that is trained is what it makes."""
        return self.algorithm.models(self)

    @property
    def further_roles(self) -> tuple[str, ...]:
        """The names of the trained models beside the one that the run makes."""
        return tuple(role.name for role in self.models if role.trained)[1:]

    @property
    def trained_configs(self) -> dict[str, ModelConfig]:
        """Of the trained models by role, with "" for the one that the run makes."""
        product, *further = [role for role in self.models if role.trained]
        return {"": product.model, **{role.name: role.model for role in further}}

    @property
    def checkpoint_bytes(self) -> int:
        """Of the tensors of a checkpoint: the trained models and their optimizers' states."""
        trained = (role for role in self.models if role.trained)
        return sum(saved_bytes(role, self.training.optimizer) for role in trained)

    def check_ranks(self, world: int) -> None:
        """The models and the batch must divide among so many ranks.

        Raises:
            RecipeError: they do not; it names what would.
        """
        with name_launcher(world):
            where = self.recipe.where(("parallel",))
            check_models(self.models, self.parallel, world, where)
            check_batches(self.training, self.parallel, world)

    def with_training(self, **changed: Any) -> TrainingSettings:
        """The same with some settings of the algorithm's section replaced."""
        return replace(self, training=self.training.model_copy(update=changed))

    def by_name(self) -> dict[str, Any]:
        """Every setting by its dotted name, but for where it runs and what it reads.

        Ranks must agree in these, also in those that change no result.
        """
        read = {needed.key for needed in self.algorithm.all_inputs}
        training = self.training.model_dump(mode="json", exclude={"device", *read})
        named = {f"{self.training.section}.{name}": value for name, value in training.items()}
        shape = self.model.model_dump(mode="json")
        return named | {f"model.{name}": value for name, value in shape.items()}


def _check_model(recipe: Recipe, section: type[RunConfig]) -> None:
    """[model] is there and whole: written out, or taken from what the run begins with.

    Raises:
        RecipeError: it is not.
    """
    init = recipe.get(section).init
    begin = f"{section.section}.init"
    if not recipe.has(ModelConfig):
        neither = f", and neither has {init}, which it begins with" if init else ""
        raise RecipeError(
            f"recipe {recipe.name!r} has no [model] section{neither}",
            where=str(recipe.path),
            todo="add [model], take one from another recipe with base = ..., or name a checkpoint "
            f"to begin with as {begin}: its model is taken",
        )
    try:
        recipe.get(ModelConfig)
    except RecipeError as error:
        if init and error.what.startswith("missing key model."):
            error.todo = f"{error.todo}, or leave [model] out: it is then that of {begin}"
        raise


def check_models(
    roles: Sequence[ModelRole], parallel: ParallelConfig, world: int, where: str
) -> None:
    """Check that a layout divides every model of a run evenly: see `check_layout`.

    Raises:
        RecipeError: one does not divide; of several it names which.
    """
    for role in roles:
        try:
            check_layout(parallel, role.model, world, where)
        except RecipeError as error:
            if len(roles) > 1:
                error.what = f"{role.name}: {error.what}"
            raise


def check_training(recipe: Recipe, algorithm: Algorithm) -> None:
    """Sections about training must not contradict each other, on any machine.

    Raises:
        RecipeError: they do.
    """
    has_model, has_training = recipe.has(ModelConfig), recipe.has(algorithm.section)
    if has_training:
        _check_warmup(recipe, algorithm.section)
        _check_not_itself(recipe, algorithm)
    if has_model and recipe.has(TokenizerConfig):
        _check_vocabulary(recipe, algorithm)
    if has_model and has_training:
        check_context(recipe, algorithm.section)
    algorithm.check(recipe)


def _check_warmup(recipe: Recipe, section: type[RunConfig]) -> None:
    """The warm-up ends within the run, as far as that is known without the data."""
    config = recipe.get(section)
    total, warmup = Duration.parse(config.length), config.schedule.warmup_length
    known = "epochs" not in (total.unit, warmup.unit)
    steps = [one.steps(batch_tokens=config.step_tokens, epoch_tokens=0) for one in (warmup, total)]
    if (
        steps[0] >= steps[1]
        if known
        else total.unit == warmup.unit and warmup.amount >= total.amount
    ):
        raise RecipeError(
            f"the warm-up of {config.schedule.warmup} does not end within the run of "
            f"{config.length}",
            where=recipe.where((config.section, "schedule", "warmup")),
            todo="shorten the warm-up or lengthen the run",
        )


def _check_not_itself(recipe: Recipe, algorithm: Algorithm) -> None:
    """No model begins with the newest checkpoint of the run's own name.

    That is the run's own as soon as it has saved one: to go on would be another run, which begins
    with half of this one.
    """
    config = recipe.get(algorithm.section)
    for needed in algorithm.all_inputs:
        named = getattr(config, needed.key, None)
        every = [named] if isinstance(named, str) else named or ()
        if needed.kind == "checkpoint" and {recipe.name, f"checkpoint/{recipe.name}"} & {*every}:
            place = (config.section, needed.key)
            raise RecipeError(
                f"{'.'.join(place)} is {recipe.name!r}, the newest checkpoint of the name that "
                "this run gives its own",
                where=recipe.where(place),
                todo="give this run another name (--set name=...), or name that checkpoint by its "
                "digest or a tag; see `bc2 registry list`",
            )


def _check_vocabulary(recipe: Recipe, algorithm: Algorithm) -> None:
    """The model has a row for every piece of the recipe's tokenizer, if it is what trains read."""
    # Of other data, or of what another tokenizer cut, this one's tokenizer says nothing.
    if recipe.has(algorithm.section):
        data = recipe.get(algorithm.section).model_dump(
            include={needed.key for needed in algorithm.inputs}
        )
        if any(value is not None for value in data.values()):
            return
    if recipe.has(TokensConfig) and recipe.get(TokensConfig).tokenizer is not None:
        return
    model, pieces = recipe.get(ModelConfig), recipe.get(TokenizerConfig)
    if model.vocab_size < pieces.vocab_size:
        raise RecipeError(
            f"model.vocab_size = {model.vocab_size} is smaller than "
            f"tokenizer.vocab_size = {pieces.vocab_size}",
            where=recipe.where(("model", "vocab_size")),
            todo=f"set model.vocab_size = {pieces.vocab_size}",
        )
