"""`bc2 watch [RUN]`: a run as it goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output, table
from bc2.errors import Interrupted
from bc2.options import Json, verb
from bc2.process.signals import signal_of
from bc2.registry import Registry

app = verb()


@app.command(no_args_is_help=False)
def watch(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's name or folder, or a checkpoint."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Show the state now and leave.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.05, help="Seconds between looks: 1 on a terminal, else 10."),
    ] = None,
    json: Json = False,
) -> None:
    """Show a run's state until it ends: losses, gradient norm, speed, time left, restarts.

    Without RUN the newest one is taken. On a terminal it is a live view; elsewhere a line
    an interval on stderr. The last state is printed on stdout. Ctrl-C stops the watching,
    not the run.
    """
    from bc2.report import watch as watching
    from bc2.report.status import Status
    from bc2.train.logs.runs import find_run

    registry = Registry.open()
    found = find_run(registry, run)
    status = Status(found, registry)
    if once:
        status.update()
    else:
        try:
            watching.watch(status, interval_s=interval)
        except KeyboardInterrupt as stop:
            raise Interrupted(
                "left the watching; the run goes on",
                signum=signal_of(stop),
                todo=f"again: bc2 watch {found.path.name}",
            ) from None
    Output.of(json=json).emit(status.as_json(), table=table(("", ""), watching.status_rows(status)))
