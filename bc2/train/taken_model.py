"""The [model] of a recipe that leaves it to the checkpoint that it begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bc2.errors import IntegrityError
from bc2.model.model_config import ModelConfig
from bc2.pipeline.sources import source_named
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry
from bc2.train.algorithm import INIT, Algorithm

if TYPE_CHECKING:
    from bc2.train.run_config import RunConfig

#: The file of a checkpoint that has its model's settings, as `bc2.model.store` writes it.
_CONFIG = "model.json"


def take_model(recipe: Recipe, registry: Registry | None, algorithm: Algorithm) -> Recipe:
    """The recipe with the [model] of its ``init``, where none of its files has one.

    Overrides of single settings stay. Without ``init`` nothing is taken.

    Raises:
        RefError: there is no such checkpoint.
        RecipeError: the algorithm's section, or the recipe that it names, is wrong.
        IntegrityError: the checkpoint's settings are not what was published.
    """
    section: type[RunConfig] = algorithm.section
    if recipe.writes(ModelConfig) or not recipe.has(section):
        return recipe
    named = recipe.get(section).init
    if named is None or ModelConfig.section in recipe.borrowed:
        return recipe
    source = source_named(named, INIT, recipe)
    if isinstance(source, Recipe):
        if not source.has(ModelConfig):
            return recipe
        table = source.data[ModelConfig.section]
        return recipe.borrowing(ModelConfig, table, source.where((ModelConfig.section,)))
    artifact = (registry or Registry.open()).resolve(source, "checkpoint")
    return recipe.borrowing(ModelConfig, _settings_of(artifact), str(artifact.path / _CONFIG))


def _settings_of(artifact: Artifact) -> Mapping[str, Any]:
    """The table that a checkpoint's model was made by, which is checked when it is used."""
    path = artifact.file(_CONFIG)
    try:
        table = json.loads(path.read_bytes())
    except ValueError as error:
        raise IntegrityError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(table, Mapping):
        raise IntegrityError("no table of settings", where=str(path))
    return table
