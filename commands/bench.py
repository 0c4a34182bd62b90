"""`bc2 bench [RECIPE]`: how fast it trains, beside a peer if asked."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from bc2.console import Output, note, progress
from bc2.errors import UsageError
from bc2.files import replace_durably
from bc2.options import Json, Set, output_file, refuse_overrides, verb
from bc2.pipeline.reach import load_training
from bc2.recipe import Recipe
from bc2.registry import Registry, find_home

if TYPE_CHECKING:
    from typer._click import Context

    from bc2.bench.measure import BenchPlan
    from bc2.bench.results import BenchResult

app = verb()


@dataclass(frozen=True)
class BenchOptions:
    """The options that say what is measured."""

    steps: int
    rounds: int
    against: str | None
    peers: str | None
    ours: str | None
    layouts: tuple[str, ...]
    checkpointing: str | None
    peer_environment: str
    documents: int
    checkpoint: bool


class _BenchCommand(TyperCommand):
    """`bc2 bench [RECIPE]`, unless its first word is the name of a benchmark of its own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Context | None = None, **extra: Any
    ) -> Context:
        if args[:1] != ["generate"]:
            return super().make_context(info_name, args, parent, **extra)
        generation = importlib.import_module("bc2.commands.bench_generate")
        command = typer.main.get_command(generation.app)
        return command.make_context(f"{info_name} generate", args[1:], parent, **extra)


@app.command(cls=_BenchCommand)
def bench(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A path, or a shipped name.")
    ] = "bench",
    set_: Set = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of a block.")] = 5,
    rounds: Annotated[int, typer.Option(help="Blocks of each contender, in turn.")] = 8,
    against: Annotated[
        str | None, typer.Option(help="A peer at the same shape: hf, transformers' Llama.")
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Ways of the peer, such as bf16-eager,autocast-compiled.")
    ] = None,
    ours: Annotated[
        str | None,
        typer.Option(help="In one process: eager, compiled or both; else as the recipe."),
    ] = None,
    layout: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N:KEY=VALUE,...", help="Over N ranks too, e.g. 2:zero=1; as often as you like."
        ),
    ] = None,
    checkpointing: Annotated[
        str | None, typer.Option(help="A series of activation checkpointing, such as 0,1,2.")
    ] = None,
    peer_environment: Annotated[
        str, typer.Option(help="same: bc2's process settings for the peer too; plain: without.")
    ] = "same",
    documents: Annotated[
        int, typer.Option(help="Mean tokens of a packed document; 0: a row is one.")
    ] = 0,
    checkpoint: Annotated[
        bool, typer.Option(help="Time a save in each round, which writes a checkpoint to disk.")
    ] = True,
    save: Annotated[bool, typer.Option(help="Keep the result below the registry home.")] = True,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result there too.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the kept results.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show two kept results.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure training: speed, MFU, memory and the parts of a step, with random tokens.

    The recipe needs [model] and a section that trains, such as [pretrain]; without one, a shape
    of 23M parameters is measured. Each contender is a process of its own, and they take turns.
    --against hf builds transformers' Llama at the same shape and tells how many times as fast
    bc2 is; --layout runs the recipe over ranks of this machine beside the one process.

    `bc2 bench generate` measures how fast a model writes and scores: see its own --help.
    """
    output = Output.of(json=json)
    if list_:
        refuse_overrides(set_, "--list")
        return _list(output)
    if compare is not None:
        refuse_overrides(set_, "--compare")
        return _compare(output, *compare)
    asked = BenchOptions(
        steps, rounds, against, peers, ours, tuple(layout or ()), checkpointing, peer_environment,
        documents, checkpoint,
    )  # fmt: skip
    _check(asked)
    if markdown is not None:
        markdown = output_file(markdown, "--markdown")
    Registry.open().check_writable()
    read = load_training(recipe, set_ or [])
    result = _measure(read, asked)
    _keep(result, save=save, markdown=markdown)
    _show(output, result)


def _folder() -> Path:
    return find_home() / "bench"


def _check(asked: BenchOptions) -> None:
    for name, value, least in (
        ("--steps", asked.steps, 1),
        ("--rounds", asked.rounds, 1),
        ("--documents", asked.documents, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value} is too few", todo=f"give at least {least}")
    if asked.against not in (None, "hf"):
        raise UsageError(f"no peer is called {asked.against!r}", todo="there is: hf")
    if asked.peer_environment not in ("same", "plain"):
        raise UsageError(
            f"--peer-environment {asked.peer_environment!r} is not known", todo="same or plain"
        )
    if asked.against is None and asked.peers is not None:
        raise UsageError("--peers without a peer", todo="add --against hf")
    if asked.against and asked.documents:
        raise UsageError(
            "the peer does not keep packed documents apart",
            todo="leave out --documents or --against",
        )


def _measure(recipe: Recipe, asked: BenchOptions) -> BenchResult:
    from bc2.bench.machine import machine_facts
    from bc2.bench.measure import announce, run_benchmark
    from bc2.bench.results import new_id

    plan = _plan(recipe, asked)
    announce(plan)
    identity, time = new_id(recipe.name, _folder())
    header = {
        "id": identity,
        "time": time,
        "recipe": {
            "model": plan.model.model_dump(mode="json"),
            plan.training.section: plan.training.model_dump(mode="json"),
        },
        "machine": machine_facts(plan.device),
        "settings": _settings(plan, asked),
    }
    with progress("measuring", plan.blocks, "blocks") as bar:
        return run_benchmark(plan, _folder(), bar, header)


def _plan(recipe: Recipe, asked: BenchOptions) -> BenchPlan:
    from bc2.bench.bench_plan import make_bench_plan

    return make_bench_plan(
        recipe, **{name: getattr(asked, name) for name in BenchOptions.__annotations__}
    )


def _settings(plan: BenchPlan, asked: BenchOptions) -> dict[str, Any]:
    return {
        "steps": asked.steps,
        "rounds": asked.rounds,
        "documents": asked.documents,
        "peer_environment": asked.peer_environment,
        "precision": plan.training.precision,
        "device": plan.training.device,
        **_algorithm(plan),
    }


def _algorithm(plan: BenchPlan) -> dict[str, str]:
    """What is trained, and the number that tells how that goes; nothing of pretraining."""
    spec = plan.contenders[0]
    if spec.reads_shards:
        return {}
    headline = spec.settings.algorithm.metrics.headline
    return {"algorithm": spec.algorithm, "headline": headline.label}


def _keep(result: BenchResult, *, save: bool, markdown: Path | None) -> None:
    from bc2.bench.render import result_markdown
    from bc2.bench.results import keep_result

    if save:
        note(f"kept as {keep_result(result, _folder())}")
    if markdown is not None:
        replace_durably(markdown, result_markdown(result).encode())
        note(f"written to {markdown}")


def _show(output: Output, result: BenchResult) -> None:
    from bc2.bench.render import render_tables, setup_lines, tables

    drawn = render_tables(tables(result), list(setup_lines(result)))
    output.emit(result.as_json(), table=drawn, kept=True)


def _list(output: Output) -> None:
    from bc2.bench.render import listing, show_listing
    from bc2.bench.results import read_kept_results

    results = read_kept_results(_folder())
    show_listing(output, results, listing(results))


def _compare(output: Output, first: str, second: str) -> None:
    from bc2.bench.render import comparison, differences, show_comparison
    from bc2.bench.results import find_result

    one, other = find_result(first, _folder()), find_result(second, _folder())
    show_comparison(output, one, other, list(differences(one, other)), comparison(one, other))
