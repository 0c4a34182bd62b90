"""`bc2 ladder RECIPE`: the small runs that a scaling law is fitted to."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bc2.console import Output, show_on_stderr
from bc2.errors import Interrupted
from bc2.lasting_recipe import lasting_source
from bc2.launch.rank_options import Ranks
from bc2.launch.training_verb import (
    Deterministic,
    TrainingRequest,
    check_resources,
    train_quietly,
)
from bc2.options import Json, NProc, Quiet, RecipeArg, Set, verb
from bc2.process.launcher_variables import refuse_ranks
from bc2.ranks import RankFailed
from bc2.registry import Registry

if TYPE_CHECKING:
    from bc2.registry import Artifact
    from bc2.scaling.ladder import Ladder, LadderMember

app = verb()


@app.command()
def ladder(
    recipe: RecipeArg,
    set_: Set = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="A member; repeatable.")
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Train [ladder.extrapolation] too, at the end.")
    ] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train the smallest member with so many seeds.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes; make nothing.")
    ] = False,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of the peak for the expected time; else 0.577 (paper)."),
    ] = None,
    deterministic: Deterministic = False,
    nproc: NProc = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train the sizes of a recipe's [ladder], one after another, each registered by itself.

    A member is a run of `bc2 pretrain` with another size, length, batch and learning rate, as
    the table says first. What is registered is found, what was interrupted goes on, what fails
    is marked and the others are trained. Finished members get the ladder's name as a tag.
    """
    if not dry_run:
        refuse_ranks("bc2 ladder")
    from bc2.scaling.ladder import read_ladder

    extra = ["pretrain.deterministic=true"] if deterministic else []
    overrides = [*(set_ or []), *extra]
    read = read_ladder(recipe, overrides, seeds=seeds)
    members = read.chosen(only or (), extrapolate=extrapolate)
    for member in members:
        member.settings.check_ranks(nproc)
    if not dry_run:
        recipe = lasting_source(read.recipe, recipe, Registry.open().work / "recipes")
    again = _again(recipe, set_, only, extrapolate, seeds, deterministic, nproc)
    asked = _Asked(recipe, read, members, nproc, again)
    _run(asked, Output.of(json=json, quiet=quiet), mfu, dry_run=dry_run)


def _again(
    recipe: str, set_: list[str] | None, only: list[str] | None, extrapolate: bool, seeds: int,
    deterministic: bool, nproc: int,
) -> list[str]:  # fmt: skip
    """What a person types to go on."""
    words = ["bc2", "ladder", recipe]
    words += [word for one in set_ or () for word in ("--set", one)]
    words += [word for one in only or () for word in ("--only", one)]
    words += ["--extrapolate"] if extrapolate else []
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += ["--deterministic"] if deterministic else []
    return [*words, *Ranks(nproc).options]


@dataclass(frozen=True)
class _Asked:
    """What was asked for, read."""

    source: str
    ladder: Ladder
    members: list[LadderMember]
    nproc: int
    again: list[str]


def _run(asked: _Asked, output: Output, mfu: float | None, *, dry_run: bool) -> None:
    from bc2.scaling import ladder_view
    from bc2.scaling.ladder_data import expected, find_epoch, prepare
    from bc2.scaling.ladder_run import LadderRun, check_all_finished

    registry = Registry.open()
    progress = expected(asked.ladder, asked.members, asked.nproc, mfu)
    progress.epoch_tokens = find_epoch(registry, asked.ladder)
    if dry_run:
        output.emit(ladder_view.as_json(progress), table=ladder_view.summary(progress))
        return
    show_on_stderr(ladder_view.summary(progress))
    runs = [member.settings for member in asked.members]
    fits = partial(check_resources, registry, runs, asked.nproc, Ranks(asked.nproc).starts)
    prepare(registry, progress, before_work=fits)
    LadderRun(registry, progress, partial(_train, asked), ladder_view.live).run()
    output.emit(
        ladder_view.as_json(progress),
        table=ladder_view.result(progress),
        quiet=[entry.artifact.ref for entry in progress.entries if entry.artifact],
        kept=True,
    )
    check_all_finished(progress)


def _train(asked: _Asked, member: LadderMember) -> tuple[Artifact, bool]:
    """Find or train one member."""
    request = TrainingRequest(
        "pretrain", asked.source, member.overrides, ranks=Ranks(asked.nproc), quiet=True,
        instead=tuple(asked.again),
    )  # fmt: skip
    try:
        return train_quietly(request)
    except RankFailed as error:
        if error.exit_code <= 128:
            raise
        # The ranks tell of their own command.
        raise Interrupted(
            f"{member.name} was stopped; what it has saved stays",
            signum=error.exit_code - 128,
            todo=f"go on with: {shlex.join(asked.again)}",
        ) from None
