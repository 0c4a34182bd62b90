"""A recipe that was read from a pipe, for processes that cannot read it again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bc2.errors import RecipeError
from bc2.files import make_directory, replace_durably
from bc2.process.signals import LAUNCHED
from bc2.ranks import world_size
from bc2.recipe import Recipe
from bc2.toml_file import is_lasting, read_passing


def lasting_source(recipe: Recipe, source: str, folder: Path) -> str:
    """What the ranks of a run, and the command that resumes it, can load a recipe by.

    Args:
        recipe: as loaded from `source`.
        folder: for a copy of what can be read only once.

    Returns:
        `source` itself, or the path of a copy.

    Raises:
        RecipeError: its base can be read only once; or several ranks would read it.
    """
    passing = [layer.path for layer in recipe.layers if not is_lasting(layer.path)]
    if not passing:
        return source
    if world_size() > 1 and LAUNCHED not in os.environ:
        raise RecipeError(
            "only one of the ranks can read this", where=source, todo="give the recipe as a file"
        )
    if passing != [recipe.path]:
        raise RecipeError(
            "a base that can be read only once: neither a rank nor a resumed run could read it",
            where=str(passing[-1]),
            todo="give the base as a file",
        )
    data = read_passing(recipe.path)
    kept = folder.absolute() / hashlib.sha256(data).hexdigest()[:16]
    make_directory(kept)
    copy = kept / f"{recipe.layers[0].stem}.toml"
    replace_durably(copy, data)
    return str(copy)
