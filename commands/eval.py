"""`bc2 eval [REF] --bench NAME,...`: the scores of a checkpoint in benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bc2.console import Output
from bc2.options import Fresh, Json, NProc, Quiet, verb
from bc2.registry import Role

if TYPE_CHECKING:
    pass

app = verb()

#: Roles of the checkpoints that have a next token to predict.
_ROLES: tuple[Role, ...] = ("base", "chat", "merged")


@app.command(no_args_is_help=True)
def evaluate(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="A checkpoint; else the newest.")
    ] = None,
    bench: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Benchmarks; see --list.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Their files; else BC2_BENCH_DATA, then the hub."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples in a prompt; else the paper's.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many samples of each subject.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of drawn examples, and of sampling.")] = 1234,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers to each prompt that is continued, for pass@k.")
    ] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="Of answers; 0 is greedy.")] = 0.0,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the model's programs, in a sandbox.")
    ] = False,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Exit with 1 below it; repeatable."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Of the windows of --bench text, tokens.")
    ] = None,
    nproc: NProc = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    cache_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For keys and values: '2 GiB'; half of what is free."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the scores there: .json, .csv or .md."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the benchmarks.")] = False,
    fresh: Fresh = False,
    rank_of: Annotated[Path | None, typer.Option(hidden=True)] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a checkpoint in benchmarks, and register the scores.

    An evaluation that was interrupted goes on where it was; one that is registered is found.
    """
    output = Output.of(json=json, quiet=quiet)
