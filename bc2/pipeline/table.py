"""Which stage makes which kind of artifact. A module is imported when its stage is needed."""

from __future__ import annotations

import importlib
from typing import Any

from bc2.errors import RecipeError, UsageError
from bc2.pipeline.stage import Stage
from bc2.recipe import Recipe
from bc2.registry import Kind, check_name

#: Kind -> "module:STAGE". The one place a new stage is announced.
STAGES: dict[Kind, str] = {
    "corpus": "bc2.data.corpus_stage:STAGE",
    "tokenizer": "bc2.data.tokenizer_stage:STAGE",
    "tokens": "bc2.data.tokens_stage:STAGE",
    "checkpoint": "bc2.train.pretrain_stage:STAGE",
    "law": "bc2.scaling.law_stage:STAGE",
    "scores": "bc2.evaluate.scores_stage:STAGE",
}


def stage_of(kind: Kind) -> Stage[Any]:
    """The stage that makes artifacts of `kind`."""
    module, _, name = STAGES[kind].partition(":")
    stage = getattr(importlib.import_module(module), name)
    assert isinstance(stage, Stage)
    assert stage.kind == kind
    return stage


def check_recipe(recipe: Recipe) -> None:
    """Everything that can be known to be wrong with a recipe on any machine.

    Raises:
        RecipeError: a section is wrong, or two sections contradict each other.
    """
    check_sections(recipe)
    for kind in STAGES:
        check = stage_of(kind).check
        if check is not None:
            check(recipe)


def check_sections(recipe: Recipe) -> None:
    """A recipe's name, which names artifacts and folders, and every section by itself.

    Raises:
        RecipeError: one is wrong.
    """
    try:
        check_name(recipe.name)
    except UsageError as error:
        raise RecipeError(error.what, where=recipe.where(("name",)), todo=error.todo) from None
    for _ in recipe.sections():
        pass
