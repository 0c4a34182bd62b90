"""Where the inputs of a stage come from: other recipes, this one, refs, or the newest artifact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from os.path import isfile
from typing import Any

from bc2 import recipe as recipes
from bc2.errors import RecipeError
from bc2.pipeline.stage import Input
from bc2.pipeline.table import stage_of
from bc2.recipe import Recipe
from bc2.registry import Kind


def sources_of(needed: Input[Any], settings: Any, recipe: Recipe) -> Iterator[Recipe | str | None]:
    """Where each artifact of an input comes from: a recipe, a ref, or None for the newest."""
    named = needed.named(settings)
    if named is None:
        if needed.optional:
            return
        stage = stage_of(needed.kind, recipe)
        yield recipe if stage.made_by(recipe, stage_of) else None
        return
    for name in [named] if isinstance(named, str) else named:
        yield source_named(name, needed, recipe)


def source_named(name: str, needed: Input[Any], recipe: Recipe) -> Recipe | str:
    """What a recipe names for an input: another recipe, or a ref as it is.

    Raises:
        RecipeError: the other recipe is missing or wrong.
    """
    if not name.endswith(".toml"):
        return name
    other = _other_recipe(recipe, needed.key, name)
    if needed.kind != "checkpoint" or recipe.complete is None:
        return other
    return recipe.complete(replace(other, complete=recipe.complete))


def _other_recipe(recipe: Recipe, key: str, name: str) -> Recipe:
    """The recipe that another one names by `key` of a section.

    Raises:
        RecipeError: it is missing or wrong, or is made of what it makes. What lies in no place is
            said to lie where it is named.
    """
    beside = recipe.folder / name
    try:
        found = recipes.load(beside if isfile(beside) else name)
        way = (*recipe.named_by, found.path.resolve())
        # The recipe that is asked for is not on it: what it names is read without its overrides.
        if len(set(way)) < len(way):
            raise RecipeError(
                f"recipes name each other as {key}: {' -> '.join(map(str, way))}",
                todo="break the circle",
            )
        return replace(found, named_by=way)
    except RecipeError as error:
        sections = [one for one in recipe.section_names if recipe.data[one].get(key) == name]
        if error.where is None and sections:
            error.where = recipe.where((sections[0], key))
        raise


def recipe_making(target: Kind, recipe: Recipe, kind: Kind) -> Recipe | None:
    """The recipe that makes the `target` from which `recipe` makes its artifact of `kind`.

    Returns:
        None if it is there already, or will be: a ref, or the newest of its kind.

    Raises:
        RecipeError: a recipe on the way is missing or wrong.
    """
    stage = stage_of(kind, recipe)
    settings = stage.read(recipe)
    for needed in stage.inputs:
        for source in sources_of(needed, settings, recipe):
            if isinstance(source, Recipe):
                found = (
                    source if needed.kind == target else recipe_making(target, source, needed.kind)
                )
                if found is not None:
                    return found
    return None
