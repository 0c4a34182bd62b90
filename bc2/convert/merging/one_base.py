"""Whether models were trained from one: what was learnt apart from the start cannot be added."""

from __future__ import annotations

from collections.abc import Sequence

from bc2.errors import RecipeError
from bc2.recipe import Recipe
from bc2.registry import Artifact, Registry


def check_one_base(
    registry: Registry,
    models: Sequence[Artifact],
    base: Artifact | None,
    recipe: Recipe,
    *,
    given: bool,
) -> None:
    """Follow the models to what they began with.

    Args:
        base: which all must descend from; None: they need only begin with one model.
        given: that imported models have one base.

    Raises:
        RecipeError: they were trained from different ones, or nothing says from which.
    """
    lines = [_line(registry, model) for model in models]
    against, other = (lines[0], models[0]) if base is None else (_line(registry, base), base)
    for place, (model, line) in enumerate(zip(models, lines, strict=True)):
        where = recipe.where(("merge", "models", place))
        if line[-1].key == against[-1].key:
            if base is not None and base.key not in {one.key for one in line}:
                raise _beside(model, base, where)
        elif not (_is_imported(line[-1]) and _is_imported(against[-1])):
            raise _apart(model, line[-1], other, against[-1], where)
        elif not given:
            raise _unknown(model, other, where)


def _line(registry: Registry, model: Artifact) -> list[Artifact]:
    """A model and those that it was trained from, the first of them last.

    Two checkpoints of one run have one key, by which they are told.
    """
    line = [model]
    while True:
        parents = [one for one in registry.parents(line[-1]) if one.kind == "checkpoint"]
        if not parents:
            return line
        line.append(parents[-1])  # what it began with stands last: see `Algorithm.all_inputs`


def _is_imported(first: Artifact) -> bool:
    """Whether what a model was trained from may be somewhere else."""
    return "imported_from" in first.manifest.facts


def _beside(model: Artifact, base: Artifact, where: str) -> RecipeError:
    return RecipeError(
        f"{model.title} was not trained from {base.title}, though both come from one model",
        where=where,
        todo=f"name as base what all were trained from: bc2 registry lineage {model.ref}",
    )


def _apart(
    model: Artifact, first: Artifact, other: Artifact, its_first: Artifact, where: str
) -> RecipeError:
    return RecipeError(
        f"{model.title} comes from {first.title} ({first.ref}), and {other.title} from "
        f"{its_first.title} ({its_first.ref}): a mean of models with different bases is neither",
        where=where,
        todo="merge models that were trained from one",
    )


def _unknown(model: Artifact, other: Artifact, where: str) -> RecipeError:
    return RecipeError(
        f"nothing says that {model.title} and {other.title} were trained from one model: both "
        "were imported, or come from what was",
        where=where,
        todo="if their authors say so, set merge.same_base = true",
    )
