"""What `bc2 data lint RECIPE` looks at: the recipe's conversations, as its model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bc2.errors import RecipeError
from bc2.launch.hub_inputs import HubInputs
from bc2.pipeline.completion import completed
from bc2.pipeline.reach import check_overrides
from bc2.pipeline.table import algorithm_named, recipe_of_verb, training_section
from bc2.recipe import load
from bc2.registry import Registry
from bc2.train.algorithm import INIT

if TYPE_CHECKING:
    from bc2.align.lint.lint import LintTask

_VERB = "sft"


def lint_task(registry: Registry, source: str, overrides: Sequence[str] = ()) -> LintTask:
    """Read a recipe, and find or make its conversations; nothing is trained.

    A model of a hub that it names is imported.

    Raises:
        RecipeError: it is wrong, has no [sft], or the model it begins with is not trained yet.
        RefError: what it names is not there.
        DataError: a conversation cannot be read, or the model has no chat layout.
    """
    from bc2.align.lint.lint import LintTask
    from bc2.align.samples.speech import chat_source
    from bc2.align.sft.sft_config import SftConfig
    from bc2.pipeline.session import Session
    from bc2.train.training_settings import TrainingSettings

    written = load(source, overrides)
    if not written.has(SftConfig):
        raise RecipeError(
            "it has no [sft]: which model is to read the conversations is not said",
            where=str(written.path),
            todo="add [sft] with init, or name a recipe of `bc2 sft`",
        )
    written = recipe_of_verb(written, _VERB)
    recipe = completed(written, registry, before=HubInputs.of(registry).pinned)
    check_overrides(recipe, "checkpoint")
    settings = TrainingSettings.of(recipe, algorithm=algorithm_named(_VERB), trains=False)
    session = Session(registry)
    base = session.untrained(recipe, settings)
    if base is not None:
        raise RecipeError(
            f"the model of {base.name!r}, which the recipe begins with, is not trained yet",
            where=recipe.where((_VERB, INIT.name)),
            todo=f"train it first: bc2 {training_section(base)} {base.path}",
        )
    inputs = session.obtain_inputs("checkpoint", recipe, settings=settings)
    chats, model = inputs.one("chats"), inputs.one(INIT.name)
    config = settings.training
    assert isinstance(config, SftConfig)
    found = chat_source(chats.path, chats, model, config.chat_layout, config.section)
    return LintTask(recipe.name, chats.ref, model.ref, found, config, settings.model)
