"""`bc2 bench generate [RECIPE]`: how fast a model writes and scores, beside transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bc2.console import Output, note, progress
from bc2.errors import UsageError
from bc2.files import replace_durably
from bc2.options import Json, Set, output_file, refuse_overrides, verb
from bc2.pipeline.reach import load_for
from bc2.registry import Registry, find_home

if TYPE_CHECKING:
    from bc2.bench.generation.generation_plan import GenerationOptions
    from bc2.bench.generation.measure import GenerationPlan
    from bc2.bench.generation.results import GenerationResult

app = verb()

#: The recipe of the default shape.
_SHAPE = "bench-generate"


@app.command()
def generate(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A path, or a shipped name, with [model].")
    ] = _SHAPE,
    set_: Set = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Measure a registered model instead of random weights."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Some of decode,prefix,sampling,settle,n; else all.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Some of hf-static,hf-sorted,hf-continuous, or none; else all."),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Sequences together that are tried for each peer.")
    ] = "8,16,32,64,128",
    precision: Annotated[str, typer.Option(help="fp32, bf16, or fp32,bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is measured.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Prompts that are continued.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights and of the work.")] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines with `prompt` or `instruction`; else random ids."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For the files; else the model's, or bytes.")
    ] = None,
    mmlu: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="MMLU's dev/ and test/ as CSV; else random ids."),
    ] = None,
    subjects: Annotated[int, typer.Option(min=1, help="Subjects to score.")] = 4,
    questions: Annotated[int, typer.Option(min=1, help="Questions of a subject.")] = 8,
    n: Annotated[int, typer.Option("--n", min=2, help="Continuations of one prompt.")] = 8,
    max_running: Annotated[
        int | None, typer.Option(min=1, help="Of bc2: most sequences that decode together.")
    ] = None,
    cache_mb: Annotated[
        int | None, typer.Option("--cache-mb", min=1, help="Of bc2: size of the cache, in MB.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Keep the result below the registry home.")] = True,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result there too.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the kept results.")] = False,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="A B", help="Show two kept results.")
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure generation and scoring: speed, memory, and what the parts of it take.

    decode: prompts continued by answers of fixed lengths, beside transformers with the same
    weights, in static batches (hf-static; hf-sorted with the answers' lengths known beforehand)
    and continuous ones. prefix: questions behind common examples, scored with shared
    beginnings and without. sampling: the share of choosing tokens at a vocabulary of 125,696.
    settle: the share of settling near ties. n: several continuations of one prompt beside one.
    """
    from bc2.bench.generation.generation_plan import GenerationOptions

    output = Output.of(json=json)
    if list_:
        refuse_overrides(set_, "--list")
        return _list(output)
    if compare is not None:
        refuse_overrides(set_, "--compare")
        return _compare(output, *compare)
    if markdown is not None:
        markdown = output_file(markdown, "--markdown")
    if save:
        Registry.open().check_writable()
    asked = GenerationOptions(
        only, against, sizes, precision, device, rounds, requests, seed, prompts, tokenizer, mmlu,
        subjects, questions, n, max_running, cache_mb,
    )  # fmt: skip
    with _planned(recipe, set_ or [], checkpoint, asked) as (name, facts, plan):
        result = _measure(name, facts, plan, asked)
    _keep(result, save=save, markdown=markdown)
    _show(output, result)


def _folder() -> Path:
    return find_home() / "bench" / "generation"


@contextmanager
def _planned(
    recipe: str, overrides: list[str], ref: str | None, asked: GenerationOptions
) -> Iterator[tuple[str, dict[str, Any], GenerationPlan]]:
    """The name of what is measured, what tells its weights, and the plan."""
    from bc2.bench.generation.generation_plan import make_generation_plan
    from bc2.model.model_config import ModelConfig, check_language_head

    if ref is None:
        read = load_for("checkpoint", recipe, overrides, reads=("model",))
        check_language_head(read, "generating")
        yield read.name, {}, make_generation_plan(read.get(ModelConfig), asked)
        return
    if recipe != _SHAPE or overrides:
        raise UsageError(
            "a registered model has its own shape",
            todo="leave out RECIPE and --set, or --checkpoint",
        )
    from bc2.generate.chosen_model import chosen_model
    from bc2.model.store import load_config
    from bc2.tokenizer.tokenizer_files import tokenizer_name, tokenizer_path

    artifact = chosen_model(Registry.open(), ref)
    with artifact.hold():
        if asked.tokenizer is None and tokenizer_name(artifact.files()) is not None:
            asked = replace(asked, tokenizer=tokenizer_path(artifact))
        plan = make_generation_plan(load_config(artifact.path), asked, checkpoint=artifact)
        yield artifact.name, {"checkpoint": artifact.digest}, plan


def _measure(
    name: str, facts: dict[str, Any], plan: GenerationPlan, asked: GenerationOptions
) -> GenerationResult:
    import torch

    from bc2.bench.generation.measure import announce_generation, run_generation
    from bc2.bench.machine import machine_facts
    from bc2.bench.results import new_id

    announce_generation(plan)
    identity, time = new_id(name, _folder())
    header = {
        "id": identity,
        "time": time,
        "recipe": {"model": plan.job.model.model_dump(mode="json"), **facts},
        "machine": machine_facts(torch.device(plan.job.device)),
        "settings": _settings(plan, asked),
    }
    with progress("measuring", plan.total, "rounds") as bar:
        return run_generation(plan, _folder(), bar, header)


def _settings(plan: GenerationPlan, asked: GenerationOptions) -> dict[str, Any]:
    """The options that were used; whether files were given, not where they are."""
    files = {name: getattr(asked, name) is not None for name in ("prompts", "tokenizer", "mmlu")}
    return {
        **asdict(asked),
        **files,
        "only": list(plan.parts),
        "against": list(plan.contenders[1:]),
        "precision": list(plan.precisions),
        "device": plan.job.device,
    }


def _keep(result: GenerationResult, *, save: bool, markdown: Path | None) -> None:
    from bc2.bench.generation.render import generation_markdown
    from bc2.bench.results import keep_result

    if save:
        note(f"kept as {keep_result(result, _folder())}")
    if markdown is not None:
        replace_durably(markdown, generation_markdown(result).encode())
        note(f"written to {markdown}")


def _show(output: Output, result: GenerationResult) -> None:
    from bc2.bench.generation.render import generation_setup, generation_tables
    from bc2.bench.render import render_tables

    made = render_tables(generation_tables(result), list(generation_setup(result)))
    output.emit(result.as_json(), table=made, kept=True)


def _list(output: Output) -> None:
    from bc2.bench.generation.render import generation_listing
    from bc2.bench.generation.results import read_kept_generations
    from bc2.bench.render import show_listing

    results = read_kept_generations(_folder())
    show_listing(output, results, generation_listing(results))


def _compare(output: Output, first: str, second: str) -> None:
    from bc2.bench.generation.render import generation_comparison, generation_differences
    from bc2.bench.generation.results import find_generation
    from bc2.bench.render import show_comparison

    one, other = find_generation(first, _folder()), find_generation(second, _folder())
    unlike = list(generation_differences(one, other))
    show_comparison(output, one, other, unlike, generation_comparison(one, other))
