"""`bc2 merge`: models that a recipe names as one; or an adapter and its base."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output
from bc2.errors import UsageError
from bc2.options import Json, Quiet, RecipeArg, Set, refuse_overrides, verb
from bc2.registry import Artifact, Registry, Role

app = verb()


@app.command()
def merge(
    recipe: RecipeArg = "",
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="REF", help="A checkpoint of role adapter; no RECIPE."),
    ] = None,
    set_: Set = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Of the model; else the recipe's, or the adapter's -merged."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make one model of those that a recipe's [merge] names: linear, ties, slerp ...

    With --adapter, add an adapter to the weights of its base. Both are computed in fp32, some rows
    at a time, and the model is registered with its parents. Every command takes an adapter as it
    is, too.
    """
    from bc2.convert.merging.merge_view import merge_tables
    from bc2.report.artifact_view import show_artifact

    if bool(recipe) == (adapter is not None):
        got = "both" if recipe else "neither"
        raise UsageError(
            f"one of RECIPE and --adapter is needed; got {got}",
            todo="bc2 merge RECIPE, or bc2 merge --adapter REF",
        )
    registry = Registry.open()
    if adapter is not None:
        refuse_overrides(set_, "--adapter")
        merged, made = _with_adapter(registry, adapter, name)
    else:
        merged, made = _of_recipe(registry, recipe, set_ or [], name)
    output = Output.of(json=json, quiet=quiet)
    show_artifact(merged, output, made=made, below=merge_tables(merged))


def _with_adapter(registry: Registry, adapter: str, name: str | None) -> tuple[Artifact, bool]:
    from bc2.convert.merging.merge_adapter import merge_adapter

    roles: tuple[Role, ...] = ("adapter",)
    return merge_adapter(registry, registry.resolve(adapter, "checkpoint", roles), name)


def _of_recipe(
    registry: Registry, source: str, overrides: list[str], name: str | None
) -> tuple[Artifact, bool]:
    from bc2.convert.merging.merge_models import merge_models, read_merge

    return merge_models(registry, read_merge(source, overrides), name)
