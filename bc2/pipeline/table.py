"""Which stage makes which kind of artifact. A module is imported when its stage is needed.

Checkpoints are made by several: one of each algorithm, which a recipe chooses by its section.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from bc2.errors import RecipeError, UsageError
from bc2.pipeline.stage import Stage
from bc2.plugins import foreign_algorithm
from bc2.recipe import SECTIONS, Recipe
from bc2.registry import Kind, check_name

#: Section -> "module:NAME" of an `bc2.train.algorithm.Algorithm`, in the order of a model's life.
#: The one place a new algorithm is announced.
ALGORITHMS: dict[str, str] = {
    "pretrain": "bc2.train.pretrain.pretraining:PRETRAINING",
    "sft": "bc2.align.sft.sft:SFT",
    "reward": "bc2.align.reward.reward:REWARD",
    "dpo": "bc2.align.dpo.dpo:DPO",
}

#: Kind -> "module:STAGE". The one place a new stage is announced.
STAGES: dict[Kind, str] = {
    "corpus": "bc2.data.corpus_stage:STAGE",
    "tokenizer": "bc2.data.tokenizer_stage:STAGE",
    "tokens": "bc2.data.tokens_stage:STAGE",
    "chats": "bc2.data.chats.chats_stage:STAGE",
    "pairs": "bc2.data.pairs.pairs_stage:STAGE",
    "checkpoint": "of the algorithms",
    "law": "bc2.scaling.law_stage:STAGE",
    "scores": "bc2.evaluate.scores_stage:STAGE",
}


def stage_of(kind: Kind, recipe: Recipe | None = None) -> Stage[Any]:
    """The stage that makes artifacts of `kind`.

    Args:
        recipe: says which algorithm makes a checkpoint; None, or without a section of one:
            pretraining.
    """
    if kind == "checkpoint":
        stage = algorithm_named(training_section(recipe)).stage
    else:
        stage = _imported(STAGES[kind])
    assert isinstance(stage, Stage)
    assert stage.kind == kind
    return stage


def training_section(recipe: Recipe | None) -> str:
    """The section of the algorithm that makes a recipe's checkpoint.

    Of several the last in a model's life, which may start from what another one makes.
    """
    names = [] if recipe is None else [n for n in recipe.section_names if _trains(n)]
    order = [*ALGORITHMS, *names]
    return max(names, key=order.index, default="pretrain")


def recipe_of_verb(recipe: Recipe, section: str) -> Recipe:
    """A recipe as the verb of an algorithm reads it: without those that come after it."""
    order = [*ALGORITHMS, *(n for n in recipe.section_names if n not in ALGORITHMS)]
    after = {n for n in recipe.section_names if _trains(n) and n != section}
    after = {n for n in after if section not in order or order.index(n) > order.index(section)}
    return replace(recipe, data={n: v for n, v in recipe.data.items() if n not in after})


def _trains(section: str) -> bool:
    return section in ALGORITHMS or section not in SECTIONS


def algorithm_named(section: str) -> Any:
    """The `bc2.train.algorithm.Algorithm` of a section.

    Raises:
        KeyError: no algorithm has it.
    """
    return _imported(ALGORITHMS[section]) if section in ALGORITHMS else foreign_algorithm(section)


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def check_recipe(recipe: Recipe) -> None:
    """Everything that can be known to be wrong with a recipe on any machine.

    Raises:
        RecipeError: a section is wrong, or two sections contradict each other.
    """
    check_sections(recipe)
    for kind in STAGES:
        check = stage_of(kind, recipe).check
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
