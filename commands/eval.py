"""`bc2 eval [REF] --bench NAME,...`: the scores of a checkpoint in benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output, warn
from bc2.errors import UsageError
from bc2.options import Fresh, Json, NProc, Quiet, parse_bytes, verb
from bc2.process.launcher_variables import refuse_ranks, take_part
from bc2.registry import Artifact, Registry

if TYPE_CHECKING:
    from bc2.evaluate.evaluation import Evaluation
    from bc2.evaluate.model_holder import ModelHolder
    from bc2.evaluate.summary import Summary
    from bc2.harness.suites import Suite

app = verb()

#: The benchmark that is one's own text.
_TEXT = "text"


@dataclass(frozen=True)
class _Asked:
    """What the options say, beside what is printed."""

    ref: str | None
    names: list[str]
    data: Path | None
    shots: int | None
    limit: int | None
    seed: int
    samples: int
    temperature: float
    allow_code: bool
    require: tuple[str, ...]
    apply_chat_template: bool
    fewshot_as_multiturn: bool | None
    stride: int | None
    nproc: int
    device: str
    precision: str
    cache_memory: str | None
    out: Path | None
    fresh: bool


@app.command(no_args_is_help=True)
def evaluate(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="A checkpoint; else the newest.")
    ] = None,
    bench: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Benchmarks; see --list.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Their files; else BC2_BENCH_DATA, then the hub. Of text: a FILE."
        ),
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
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask in the model's own chat layout.")
    ] = False,
    fewshot_as_multiturn: Annotated[
        bool | None,
        typer.Option(help="Examples as turns of the chat; else in one turn.", show_default="turns"),
    ] = None,
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
        take_part()
        from bc2.evaluate.rank_job import answer_as_rank

        answer_as_rank(Registry.open(), rank_of)
        return
    names = list(dict.fromkeys(filter(None, map(str.strip, (bench or "").split(",")))))
    asked = _Asked(
        ref, names, data, shots, limit, seed, samples, temperature, allow_code,
        tuple(require or ()), apply_chat_template, fewshot_as_multiturn, stride, nproc, device,
        precision, cache_memory, out, fresh,
    )  # fmt: skip
    _check(asked)
    if names == [_TEXT]:
        _evaluate_text(asked, output)
    else:
        _evaluate_suites(asked, output)


def _list(output: Output) -> None:
    from bc2.evaluate.listing import suites_json, suites_table
    from bc2.harness.suites import SUITES

    output.emit(suites_json(), table=suites_table(), quiet=[*SUITES, _TEXT])


def _check(asked: _Asked) -> None:
    """Raises: UsageError for options that contradict each other."""
    if not asked.names:
        raise UsageError("no benchmark is named", todo="give one: --bench cmmlu")
    refuse_ranks("bc2 eval")
    if math.isinf(asked.temperature):
        raise UsageError(
            f"--temperature {asked.temperature} is no temperature", todo="give one such as 0.8"
        )
    if asked.samples > 1 and not asked.temperature:
        raise UsageError(
            f"--samples {asked.samples} at temperature 0 are equal answers",
            todo="give --temperature, such as 0.8",
        )
    if asked.fewshot_as_multiturn is not None and not asked.apply_chat_template:
        option = f"--{'' if asked.fewshot_as_multiturn else 'no-'}fewshot-as-multiturn"
        raise UsageError(f"{option} is about chats", todo="add --apply-chat-template")
    if asked.names != [_TEXT]:
        if _TEXT in asked.names:
            raise UsageError("text is evaluated alone: its --data is a file", todo="--bench text")
        if asked.stride is not None:
            raise UsageError("--stride is about --bench text", todo="leave it out")
        return
    others = {
        "--shots": asked.shots is not None, "--samples": asked.samples > 1,
        "--temperature": asked.temperature > 0, "--allow-code": asked.allow_code,
        "--require": bool(asked.require), "--apply-chat-template": asked.apply_chat_template,
    }  # fmt: skip
    for option, given in others.items():
        if given:
            raise UsageError(f"{option} is not about --bench text", todo="leave it out")


def _evaluate_suites(asked: _Asked, output: Output) -> None:
    from bc2.evaluate.requirements import check_metrics, check_required, parse_requirements
    from bc2.evaluate.score_files import check_out, write_out
    from bc2.evaluate.scores import read_summaries
    from bc2.evaluate.suite_prompts import SuiteRows
    from bc2.harness.suites import SUITES

    suites = _suites(asked)
    names = [suite.name for suite in suites]
    required = parse_requirements(asked.require, evaluated=names, known=list(SUITES))
    out = check_out(asked.out)
    with _opened(asked, runs_code=any(suite.runs_code for suite in suites)) as evaluation:
        rows = [SuiteRows.open(suite, asked.data) for suite in suites]
        check_metrics(required, rows, evaluation.request)
        found = list(evaluation.evaluate(rows))
    summaries = [summary for artifact in found for summary in read_summaries(artifact)]
    if found:
        if out is not None:
            write_out(out, found, summaries)
        _show(evaluation, found, summaries, output)
    for error in evaluation.failed[1:]:
        warn(str(error).removeprefix("error: "))
    if evaluation.failed:
        raise evaluation.failed[0]
    check_required(summaries, required)


def _evaluate_text(asked: _Asked, output: Output) -> None:
    from bc2.evaluate.score_files import check_out, write_text_out
    from bc2.evaluate.tables import text_table
    from bc2.evaluate.text_run import TextFiles, read_text_scores

    out = check_out(asked.out, kinds=(".json",))
    with _opened(asked) as evaluation:
        artifact = evaluation.measure_text(TextFiles.open(asked.data), asked.stride)
    result = read_text_scores(artifact)
    if out is not None:
        write_text_out(out, result)
    from rich.console import Group

    stride = f"windows of {result['window']:,} tokens, stride {result['stride']:,}"
    drawn = Group(text_table(result), "", stride, "", f"{artifact.title} {artifact.ref}")
    shown = {**_described(artifact, made=artifact in evaluation.session.built), **result}
    output.emit(shown, table=drawn, quiet=[artifact.ref], kept=True)


def _suites(asked: _Asked) -> list[Suite]:
    """The suites that are named, each once."""
    from bc2.harness.suites import suite_of

    suites = list({suite.name: suite for suite in map(suite_of, asked.names)}.values())
    if asked.temperature and all(suite.of_choices for suite in suites):
        raise UsageError(
            f"--temperature draws nothing in {suites[0].name}: its choices are scored",
            todo="leave it out",
        )
    runs_code = [suite.name for suite in suites if suite.runs_code]
    if runs_code and not asked.allow_code:
        raise UsageError(
            f"{runs_code[0]} runs programs that the model writes",
            where="--bench",
            todo="allow it with --allow-code: they run in a sandbox",
        )
    return suites


@contextmanager
def _opened(asked: _Asked, *, runs_code: bool = False) -> Iterator[Evaluation]:
    """The model that is asked for, with what its evaluation needs."""
    from bc2.evaluate.evaluation import EvalRequest, Evaluation
    from bc2.generate.chosen_model import chosen_model
    from bc2.pipeline.session import Session

    registry = Registry.open()
    holder = _holder(chosen_model(registry, asked.ref), asked)
    with ExitStack() as held:
        held.callback(holder.close)
        sandbox = None
        if runs_code:
            from bc2.sandbox.run import Sandbox

            sandbox = held.enter_context(Sandbox.open())
        request = EvalRequest(
            asked.shots, asked.limit, asked.seed, asked.samples, asked.temperature,
            holder.precision, asked.apply_chat_template, asked.fewshot_as_multiturn is not False,
        )  # fmt: skip
        launch = partial(_launch, registry, asked.nproc) if asked.nproc > 1 else None
        session = Session(registry, fresh=asked.fresh)
        yield Evaluation(session, holder, request, asked.data, launch, sandbox)


def _holder(checkpoint: Artifact, asked: _Asked) -> ModelHolder:
    from bc2.evaluate.model_holder import ModelHolder
    from bc2.generate.engine_config import EngineConfig
    from bc2.train.device import check_gpus_for, pick_device, pick_inference_precision

    check_gpus_for(asked.device, asked.nproc)
    size = asked.cache_memory
    memory = parse_bytes(size, "--cache-memory") if size is not None else None
    precision = pick_inference_precision(asked.precision, pick_device(asked.device))
    return ModelHolder.on(checkpoint, asked.device, precision, EngineConfig(cache_bytes=memory))


def _launch(registry: Registry, nproc: int, work: Path) -> None:
    from bc2.launch.elastic import launch
    from bc2.launch.rank_options import Ranks

    again = "run the same command again: it goes on with what is not answered"
    launch(Ranks(nproc), ["eval", "--rank-of", str(work)], registry.work, todo=again)


def _show(
    evaluation: Evaluation, found: Sequence[Artifact], summaries: Sequence[Summary], output: Output
) -> None:
    """The table of the suites; refs; with --json all that is known of each."""
    from rich.console import Group

    from bc2.evaluate.tables import legend, scores_table

    by_suite: dict[str, list[Any]] = {}
    for summary in summaries:
        by_suite.setdefault(summary.suite, []).append(summary.to_json())
    checkpoint, built = evaluation.holder.artifact, evaluation.session.built
    result = {
        "checkpoint": {"ref": checkpoint.ref, "title": checkpoint.title},
        "scores": [
            {
                **_described(one, made=one in built),
                "model_seconds": evaluation.model_seconds[one.digest],
                "summaries": by_suite[one.manifest.facts["suite"]],
            }
            for one in found
        ],
    }
    refs = [f"{one.title} {one.ref}" for one in found]
    drawn = Group(scores_table(summaries), "", legend(summaries), "", *refs)
    output.emit(result, table=drawn, quiet=[one.ref for one in found], kept=True)


def _described(scores: Artifact, *, made: bool) -> dict[str, Any]:
    return {
        "ref": scores.ref, "name": scores.name, "path": str(scores.path), "made": made,
        "suite": scores.manifest.facts["suite"],
    }  # fmt: skip
