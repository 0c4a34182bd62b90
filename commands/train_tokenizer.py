"""`bc2 train-tokenizer RECIPE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bc2.console import Output, note, table
from bc2.options import Fresh, Json, Quiet, RecipeArg, Set, verb
from bc2.pipeline.reach import load_for
from bc2.registry import Registry

app = verb()


@app.command()
def train_tokenizer(
    recipe: RecipeArg,
    set_: Set = None,
    report: Annotated[
        bool, typer.Option("--report", help="Compare compression on held-out text.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="A tokenizer.model or tokenizer.json to compare with.",
        ),
    ] = None,
    fresh: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the tokenizer of a recipe on a weighted sample of its corpus.

    With --report, tokens per byte and per character by language are shown for it and for every
    tokenizer given by --against, on the held-out part of the corpus.
    """
    from bc2.pipeline.session import Session
    from bc2.report.artifact_view import show_artifact
    from bc2.report.compression import check_holds_out, compression_report
    from bc2.tokenizer.round_trip import lost_sentence

    session = Session(Registry.open(), fresh=fresh)
    output = Output.of(json=json, quiet=quiet)
    read = load_for("tokenizer", recipe, set_ or [])
    if report or against:
        check_holds_out(read)
    tokenizer = session.obtain("tokenizer", read)
    if report or against:
        compared = compression_report(session.registry, tokenizer, against or [])
        for model, kinds in compared.lost.items():
            note(f"{model}: {lost_sentence(kinds)}")
        output.emit(
            {"tokenizer": tokenizer.ref, "rows": compared.to_json(), "lost": compared.lost},
            table=table(compared.columns, compared.cells()),
            quiet=[tokenizer.ref],
        )
    else:
        show_artifact(tokenizer, output, made=tokenizer in session.built)
