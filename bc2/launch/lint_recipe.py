"""What `bc2 data lint RECIPE` looks at: the recipe's data, as its model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.align.sft.sft_config import SftConfig
from bc2.errors import RecipeError
from bc2.launch.hub_inputs import HubInputs
from bc2.pipeline.completion import completed
from bc2.pipeline.reach import check_overrides
from bc2.pipeline.table import algorithm_named, recipe_of_verb, training_section
from bc2.recipe import Recipe, load
from bc2.registry import Registry
from bc2.train.algorithm import INIT

if TYPE_CHECKING:
    from bc2.align.lint.lint import LintTask
    from bc2.align.lint.pair_lint import PairLintTask
    from bc2.pipeline.stage import Inputs
    from bc2.train.training_settings import TrainingSettings

#: Verbs whose data is looked at, the last in a model's life last.
_VERBS = ("sft", "reward", "dpo")


def lint_task(
    registry: Registry, source: str, overrides: Sequence[str] = (), section: str | None = None
) -> LintTask | PairLintTask:
    """Read a recipe, and find or make its conversations or pairs; nothing is trained.

    A model of a hub that it names is imported.

    Args:
        section: of a recipe with several, the one whose data is looked at; None: the last one.

    Raises:
        RecipeError: it is wrong, has no [sft], [reward] or [dpo], or the model it begins with is
            not trained yet.
        RefError: what it names is not there.
        DataError: a row cannot be read, or the model has no chat layout.
    """
    from bc2.pipeline.session import Session
    from bc2.train.training_settings import TrainingSettings

    written = load(source, overrides)
    verb = _verb(written, section)
    written = recipe_of_verb(written, verb)
    recipe = completed(written, registry, before=HubInputs.of(registry).pinned)
    check_overrides(recipe, "checkpoint")
    settings = TrainingSettings.of(recipe, algorithm=algorithm_named(verb), trains=False)
    session = Session(registry)
    base = session.untrained(recipe, settings)
    if base is not None:
        raise RecipeError(
            f"the model of {base.name!r}, which the recipe begins with, is not trained yet",
            where=recipe.where((verb, INIT.name)),
            todo=f"train it first: bc2 {training_section(base)} {base.path}",
        )
    inputs = session.obtain_inputs("checkpoint", recipe, settings=settings)
    return _task(recipe.name, inputs, settings)


def _verb(recipe: Recipe, asked: str | None) -> str:
    """The section whose data is looked at."""
    found = [verb for verb in _VERBS if verb in recipe.section_names]
    if not found or asked not in (None, *found):
        missing = f"[{asked}]" if asked else "[sft], [reward] or [dpo]"
        raise RecipeError(
            f"it has no {missing}: which model is to read the data is not said",
            where=str(recipe.path),
            todo="add one of these with init, or name a recipe of `bc2 sft`, `reward` or `dpo`",
        )
    return asked or found[-1]


def _task(name: str, inputs: Inputs, settings: TrainingSettings) -> LintTask | PairLintTask:
    from bc2.align.lint.lint import LintTask
    from bc2.align.lint.pair_lint import PairLintTask
    from bc2.align.samples.speech import chat_source
    from bc2.data.pairs.pairs import ANSWERS

    config, model = settings.training, inputs.one(INIT.name)
    if isinstance(config, SftConfig):
        chats = inputs.one("chats")
        found = chat_source(chats.path, chats, model, config.chat_layout, config.section)
        return LintTask(name, chats.ref, model.ref, found, config, settings.model)
    assert isinstance(config, PreferenceConfig)
    pairs = inputs.one("pairs")
    found = chat_source(pairs.path / ANSWERS, pairs, model, config.chat_layout, config.section)
    ends = config.section == "reward"
    return PairLintTask(name, pairs.ref, model.ref, pairs.path, found, config, settings.model, ends)
