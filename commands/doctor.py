"""`bc2 doctor`."""

from __future__ import annotations

import typer

from bc2.console import Output, table
from bc2.options import Json, verb

app = verb()


@app.command()
def doctor(json: Json = False) -> None:
    """Show versions, devices, extras, disk, what can be done here, and what is wrong.

    Exit 1 if anything is wrong; that something cannot be done here is no fault.
    """
    from bc2.doctor import diagnose

    found = diagnose()
    drawn = table(("", ""), [*found.rows(), *(("PROBLEM", p) for p in found.problems)])
    Output.of(json=json).emit(found.as_json(), table=drawn)
    if found.problems:
        raise typer.Exit(1)
