"""`bc2 plan RECIPE`: memory, time, money and layouts, before a device is paid for."""

from __future__ import annotations

from typing import Annotated

import typer

from bc2.console import Output
from bc2.errors import UsageError
from bc2.options import Json, Quiet, Set, refuse_overrides, verb
from bc2.pipeline.reach import load_training
from bc2.registry import Registry

app = verb()


@app.command()
def plan(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A path, or a shipped name.")
    ] = None,
    set_: Set = None,
    gpus: Annotated[int, typer.Option(help="Devices, all machines together.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="h100, h200, a100, b200 ... or cpu (this machine's).")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of a device, such as 80GB, instead of its own.")
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="Peak of a device, such as 989e12, instead of its own.")
    ] = None,
    price: Annotated[str | None, typer.Option(help="Of a device's hour, such as 2.5/hour.")] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the peak that is reached; else 0.577 (paper).")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history", help="Show predictions beside what runs took.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plan a training run: memory by part, time, cost, disk, and the layouts that fit.

    Nothing is trained and no GPU is needed. The layouts are ranked by what they send over
    links and compute again, the recipe's own first if it fits; --quiet prints their names.
    """
    output = Output.of(json=json, quiet=quiet)
    if history:
        refuse_overrides(set_, "--history")
        return _history(output)
    if recipe is None:
        raise UsageError("no recipe was given", todo="bc2 plan RECIPE --gpus 8 --device h100")
    from bc2.plan.devices import find_device
    from bc2.plan.render import render_plan
    from bc2.plan.training_plan import make_plan

    found = find_device(device, count=gpus, memory=memory, flops=flops, price=price)
    read = load_training(recipe, set_ or [])
    made = make_plan(read, found, gpus, mfu)
    output.emit(made.as_json(), table=render_plan(made), quiet=[each.name for each in made.layouts])


def _history(output: Output) -> None:
    from bc2.plan.history import memory_records
    from bc2.plan.render import render_history
    from bc2.train.logs.runs import list_runs

    past = memory_records(list_runs(Registry.open()))
    output.emit(
        {"runs": [one.as_json() for one in past]},
        table=render_history(past) if past else "no run has stored its memory yet",
        quiet=[one.run for one in past],
    )
