"""Command-line options that several verbs share, so that they look and act alike."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the refs on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override section.key=value; repeatable."),
]
RecipeArg = Annotated[str, typer.Argument(metavar="RECIPE", help="A path, or a shipped name.")]
