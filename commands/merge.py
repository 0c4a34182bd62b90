"""`bc2 merge --adapter REF`: an adapter and its base as one model."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output
from bc2.options import Json, Quiet, verb
from bc2.registry import Registry, Role

app = verb()


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="REF", help="A checkpoint of role adapter.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="Of the model; the adapter's, and -merged.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add an adapter to the weights of its base, in fp32, and register the model that this is.

    Every command takes an adapter as it is, too.
    """
    from bc2.convert.merging.merge_adapter import merge_adapter
    from bc2.report.artifact_view import show_artifact

    registry = Registry.open()
    roles: tuple[Role, ...] = ("adapter",)
    found = registry.resolve(adapter, "checkpoint", roles)
    merged, made = merge_adapter(registry, found, name)
    show_artifact(merged, Output.of(json=json, quiet=quiet), made=made)
