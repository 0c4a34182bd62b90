"""`bc2 report [RUN]`: a run's page and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bc2.console import Output, table
from bc2.errors import RunFailed
from bc2.files import why_not_writable
from bc2.options import Json, output_file, verb
from bc2.registry import Registry

app = verb()


@app.command(no_args_is_help=False)
def report(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's name or folder, or a checkpoint."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.html", help="Write the page there, and only it."),
    ] = None,
    json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the page's path on stdout.")
    ] = False,
) -> None:
    """Write a run's page: curves, samples, bad steps, attempts, settings and lineage.

    One HTML file that needs no network and no JavaScript, into the run's folder, with
    the curves beside it as loss.svg and loss.png. Without RUN the newest one is taken.
    """
    from bc2.report.page import write_report
    from bc2.train.logs.runs import find_run

    if out is not None:
        out = output_file(out, "--out")
    registry = Registry.open()
    found = find_run(registry, run)
    if out is None:
        _check_folder(found.path)
    written = write_report(found, registry, out)
    paths = {"page": written.page, **{path.suffix[1:]: path for path in written.curves}}
    value = {
        "run": found.path.name,
        "state": written.state.name,
        **{name: str(path) for name, path in paths.items()},
        "metrics": written.metrics,
    }
    drawn = table(("", ""), [(name, str(path)) for name, path in paths.items()])
    Output.of(json=json, quiet=quiet).emit(value, table=drawn, quiet=[str(written.page)], kept=True)


def _check_folder(folder: Path) -> None:
    """Raises: RunFailed if nothing can be written into a run's folder."""
    reason = why_not_writable(folder)
    if reason:
        raise RunFailed(
            f"the page cannot be written into the run's folder: {reason}",
            where=str(folder),
            todo="name another place: --out FILE.html",
        )
