"""`bc2 fit-scaling-law`: a law from small runs, and what it predicts and decides."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output
from bc2.errors import UsageError
from bc2.options import Fresh, Json, Quiet, Set, verb

if TYPE_CHECKING:
    from bc2.recipe import Recipe
    from bc2.registry import Artifact
    from bc2.scaling.questions import Answers

app = verb()


@app.command()
def fit_scaling_law(
    runs: Annotated[
        list[str] | None,
        typer.Option("--runs", metavar="NAME|TAG", help="Finished runs; else the newest ladder."),
    ] = None,
    points: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="A table of runs instead.")
    ] = None,
    law: Annotated[
        str | None, typer.Option(metavar="REF", help="A law that is registered; nothing is fitted.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="'COLUMN OP VALUE'", help="Rows of the table to keep; repeatable."),
    ] = None,
    loss_unit: Annotated[
        str | None, typer.Option(metavar="nats|bits", help="Of the table's column 'loss'.")
    ] = None,
    count_params: Annotated[
        str | None, typer.Option(metavar="non-embedding|total", help="What N counts.")
    ] = None,
    count_flops: Annotated[
        str | None,
        typer.Option(metavar="6ND|counted", help="How FLOPs of runs are counted; else 6ND."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="power, kaplan, chinchilla or isoflop; else what the points determine."),
    ] = None,
    mix: Annotated[bool, typer.Option("--mix", help="Fit runs that cannot be compared.")] = False,
    huber: Annotated[
        float | None, typer.Option(help="Threshold on log loss; else 0.001 from 30 points on.")
    ] = None,
    level: Annotated[
        float | None, typer.Option(help="Share of cases that intervals cover; else 0.8.")
    ] = None,
    replicates: Annotated[
        int | None, typer.Option(help="Refits of the bootstrap; else 1000.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the law.")] = None,
    predict: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Predict the final loss of this recipe.")
    ] = None,
    set_: Set = None,
    budget: Annotated[
        float | None, typer.Option(metavar="FLOPS", help="Find the best size for this compute.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Of the shape for a budget; else 125696.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Devices for the prediction's hours; else 1.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="As in bc2 plan: h100, cpu ...")] = None,
    price: Annotated[str | None, typer.Option(help="Of a device's hour, such as 2.5/hour.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of the peak that is reached.")] = None,
    fresh: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a scaling law to finished runs or to a table, and predict with it.

    As typed: the newest ladder of the registry. The law is registered with its picture, its
    points and the intervals of its coefficients; its parents are the runs.
    """
    from bc2.registry import Registry
    from bc2.scaling.law_request import LawRequest
    from bc2.scaling.questions import Questions, ask, read_law

    request = LawRequest(
        tuple(runs or ()), points, tuple(where or ()), loss_unit, count_params, count_flops,
        form, mix, huber, level, replicates, name,
    )  # fmt: skip
    about_device = {"--gpus": gpus, "--price": price, "--mfu": mfu}
    if predict is None:
        _refuse({"--set": set_, "--device": device, **about_device}, "a prediction",
                "give --predict RECIPE")  # fmt: skip
    if device is None:
        _refuse(about_device, "a device", "give --device, such as h100")
    if budget is None:
        _refuse({"--vocab-size": vocab_size}, "a budget", "give --budget FLOPS")
    if law is not None and (fresh or request != LawRequest()):
        raise UsageError(
            "--law excludes what a new law is fitted with",
            todo="leave out --law, or all but --predict, --budget and what they take",
        )

    plan = None
    if device is not None:
        count = 1 if gpus is None else gpus
        plan = partial(_plan, gpus=count, device=device, price=price, mfu=mfu)
    questions = Questions(predict, tuple(set_ or ()), budget, vocab_size, plan)
    questions.check()
    registry, output = Registry.open(), Output.of(json=json, quiet=quiet)
    if law is not None:
        artifact, made = registry.resolve(law, "law"), False
    else:
        artifact, made = request.obtain(registry, questions, fresh=fresh)
    _show(artifact, read_law(artifact), ask(registry, artifact, questions), output, made=made)


def _refuse(given: Mapping[str, object], about: str, todo: str) -> None:
    """Options that would be ignored. Raises: UsageError naming the first that was given."""
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is about {about}", todo=todo)


def _plan(
    recipe: Recipe, *, gpus: int, device: str, price: str | None, mfu: float | None
) -> dict[str, Any]:
    from bc2.plan.devices import find_device
    from bc2.plan.training_plan import make_plan

    return make_plan(recipe, find_device(device, count=gpus, price=price), gpus, mfu).as_json()


def _show(
    artifact: Artifact, law: dict[str, Any], answers: Answers, output: Output, *, made: bool
) -> None:
    from rich.console import Group

    from bc2.scaling.render import allocation_table, law_table, prediction_table

    parts: list[Any] = [law_table(law)]
    if answers.prediction is not None:
        parts.append(prediction_table(answers.prediction, answers.plan))
    if answers.allocation is not None:
        parts.append(allocation_table(answers.allocation))
    pictures = answers.pictures or tuple(artifact.path / f"law.{kind}" for kind in ("svg", "png"))
    parts += ["", f"{artifact.title} {artifact.ref}", *(f"picture: {path}" for path in pictures)]
    result = {
        "ref": artifact.ref, "kind": artifact.kind, "name": artifact.name,
        "digest": artifact.digest, "path": str(artifact.path), "made": made,
        **law, **answers.as_json(), "pictures": [str(path) for path in pictures],
    }  # fmt: skip
    output.emit(result, table=Group(*parts), quiet=[artifact.ref], kept=True)
