"""Names of sources in a recipe's weights, held against the corpus before it is made."""

from __future__ import annotations

from collections.abc import Mapping

from bc2.data.corpus_config import CorpusConfig
from bc2.errors import RecipeError, nearest
from bc2.pipeline.sources import recipe_making
from bc2.recipe import Recipe
from bc2.registry import Kind
from bc2.toml_file import KeyPath, dotted


def check_source_weights(
    weights: Mapping[str, float], recipe: Recipe, kind: Kind, key: KeyPath, *, strata: bool = False
) -> None:
    """Check weights by source, if a recipe makes the corpus.

    Args:
        kind: of what `recipe` makes with the weights.
        key: where they stand.
        strata: whether the strata of a weighted corpus may be named too.

    Raises:
        RecipeError: a name is none of the corpus's sources.
    """
    making = recipe_making("corpus", recipe, kind) if weights else None
    if making is None:
        return
    corpus = making.get(CorpusConfig)
    known = [source.name for source in corpus.sources]
    parts = tuple(f"{name}." for name in known) if strata and corpus.weights is not None else ()
    for name in weights:
        if name not in known and not name.startswith(parts):
            guess = nearest(name, known)
            raise RecipeError(
                f"{dotted(key)}: the corpus has no source {name!r}",
                where=recipe.where((*key, name)),
                todo=f"did you mean {guess!r}?" if guess else f"it has {', '.join(known)}",
            )
