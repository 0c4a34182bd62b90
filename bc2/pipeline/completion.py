"""What a recipe leaves to a checkpoint that it names: its [model].

A command completes a recipe once, before anything else reads it: then it is the recipe in which
all of it is written out, for checks, keys and what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bc2.pipeline.table import stage_of
from bc2.recipe import Recipe
from bc2.registry import Registry


def completed(
    recipe: Recipe,
    registry: Registry | None = None,
    *,
    before: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> Recipe:
    """The recipe with what it leaves to a checkpoint filled in, and so are the recipes it names.

    One that is complete already stays as it is.

    Args:
        registry: where refs are looked up; None: the process's home, if there is one to look up.
        before: applied to each recipe first, such as to exchange names for refs.

    Raises:
        RefError: a ref that is needed for it does not answer.
        RecipeError: a recipe that is needed for it, or a section that names it, is wrong.
    """

    def complete(found: Recipe) -> Recipe:
        found = before(found)
        fill = stage_of("checkpoint", found).complete
        return found if fill is None else fill(found, registry)

    if recipe.complete is not None:
        return recipe.complete(recipe)
    return complete(replace(recipe, complete=complete))
