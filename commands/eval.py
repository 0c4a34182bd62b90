"""`bc2 eval [REF] --bench NAME,...`: the scores of a checkpoint in benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output, warn
from bc2.errors import UsageError
from bc2.options import Fresh, Json, NProc, Quiet, parse_bytes, verb
from bc2.registry import Artifact, Registry

if TYPE_CHECKING:
    from bc2.evaluate.model_holder import ModelHolder
    from bc2.evaluate.summary import Summary
    from bc2.harness.suites import Suite

app = verb()


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
    if list_:
        _list(output)
        return
    if rank_of is not None:
        from bc2.evaluate.rank_job import answer_as_rank

        answer_as_rank(Registry.open(), rank_of)
        return
    if not bench:
        raise UsageError("no benchmark is named", todo="give one: --bench cmmlu")

    from bc2.evaluate.evaluation import EvalRequest, Evaluation
    from bc2.evaluate.requirements import check_required, parse_requirements
    from bc2.evaluate.score_files import check_out, write_out
    from bc2.evaluate.scores import read_summaries
    from bc2.evaluate.suite_prompts import SuiteRows
    from bc2.generate.chosen_model import chosen_model
    from bc2.harness.suites import SUITES
    from bc2.pipeline.session import Session

    suites = _suites(bench, allow_code=allow_code)
    names = [suite.name for suite in suites]
    required = parse_requirements(require or (), evaluated=names, known=list(SUITES))
    check_out(out)
    registry = Registry.open()
    checkpoint = chosen_model(registry, ref)
    with ExitStack() as held:
        sandbox = None
        if any(suite.runs_code for suite in suites):
            from bc2.sandbox.run import Sandbox

            sandbox = held.enter_context(Sandbox.open())
        rows = [SuiteRows.open(suite, data) for suite in suites]
        holder = _holder(checkpoint, device, precision, cache_memory)
        held.callback(holder.close)
        session = Session(registry, fresh=fresh)
        request = EvalRequest(shots, limit, seed, samples, temperature, holder.precision)
        launch = partial(_launch, registry, nproc) if nproc > 1 else None
        evaluation = Evaluation(session, holder, request, data, launch, sandbox)
        found = list(evaluation.evaluate(rows))
    summaries = [summary for artifact in found for summary in read_summaries(artifact)]
    if found and out is not None:
        write_out(out, found, summaries)
    if found:
        _show(checkpoint, found, session.built, summaries, output)
    for error in evaluation.failed[1:]:
        warn(str(error).removeprefix("error: "))
    if evaluation.failed:
        raise evaluation.failed[0]
    check_required(summaries, required)


def _list(output: Output) -> None:
    from bc2.evaluate.listing import suites_json, suites_table
    from bc2.harness.suites import SUITES

    output.emit(suites_json(), table=suites_table(), quiet=list(SUITES))


def _suites(bench: str, *, allow_code: bool) -> list[Suite]:
    """The suites that are named, each once."""
    from bc2.harness.suites import suite_of

    names = dict.fromkeys(name.strip() for name in bench.split(","))
    suites = list({suite.name: suite for suite in map(suite_of, filter(None, names))}.values())
    runs_code = [suite.name for suite in suites if suite.runs_code]
    if runs_code and not allow_code:
        raise UsageError(
            f"{runs_code[0]} runs programs that the model writes",
            where="--bench",
            todo="allow it with --allow-code: they run in a sandbox",
        )
    if not suites:
        raise UsageError("no benchmark is named", todo="give one: --bench cmmlu")
    return suites


def _holder(
    checkpoint: Artifact, device: str, precision: str, cache_memory: str | None
) -> ModelHolder:
    from bc2.evaluate.model_holder import ModelHolder
    from bc2.generate.engine_config import EngineConfig
    from bc2.train.device import pick_device, pick_inference_precision

    memory = parse_bytes(cache_memory, "--cache-memory") if cache_memory is not None else None
    picked = pick_inference_precision(precision, pick_device(device))
    return ModelHolder.on(checkpoint, device, picked, EngineConfig(cache_bytes=memory))


def _launch(registry: Registry, nproc: int, work: Path) -> None:
    from bc2.launch.elastic import launch
    from bc2.launch.rank_options import Ranks

    again = "run the same command again: it goes on with what is not answered"
    launch(Ranks(nproc), ["eval", "--rank-of", str(work)], registry.work, todo=again)


def _show(
    checkpoint: Artifact,
    found: Sequence[Artifact],
    made: Sequence[Artifact],
    summaries: Sequence[Summary],
    output: Output,
) -> None:
    """The table of the suites; refs; with --json all that is known of each."""
    from rich.console import Group

    from bc2.evaluate.tables import legend, scores_table

    by_suite: dict[str, list[Any]] = {}
    for summary in summaries:
        by_suite.setdefault(summary.suite, []).append(summary.to_json())
    result = {
        "checkpoint": {"ref": checkpoint.ref, "title": checkpoint.title},
        "scores": [
            {
                "ref": one.ref, "name": one.name, "path": str(one.path), "made": one in made,
                "suite": one.manifest.facts["suite"],
                "summaries": by_suite[one.manifest.facts["suite"]],
            }
            for one in found
        ],
    }  # fmt: skip
    refs = [f"{one.title} {one.ref}" for one in found]
    drawn = Group(scores_table(summaries), "", legend(summaries), "", *refs)
    output.emit(result, table=drawn, quiet=[one.ref for one in found])
