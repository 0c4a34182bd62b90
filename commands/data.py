"""`bc2 data prep`, `tokenize`, `chats`, `pairs`, `lint`, `report` and `train-quality`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bc2.console import Output, note, progress, table
from bc2.errors import DataError, UsageError
from bc2.files import check_replaceable
from bc2.options import Fresh, Json, Quiet, RecipeArg, Set, verb
from bc2.pipeline.reach import load_for
from bc2.recipe import Recipe
from bc2.registry import Artifact, Kind, Registry

if TYPE_CHECKING:
    from bc2.align.lint.lint import LintTask
    from bc2.align.lint.pair_lint import PairLintTask
    from bc2.data.prep.prepare import PrepOptions
    from bc2.report.description import Description

app = verb()


@app.command()
def prep(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This machine, or the cluster of RAY_ADDRESS.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core if not given.")
    ] = None,
    keep_dropped: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write removed documents there: whole, unmasked."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and try it on a sample; keep nothing.")
    ] = False,
    json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Turn raw text into a corpus: clean, deduplicated, scored and weighted.

    Exact duplicates are always dropped; the recipe's tables below [corpus] switch the other
    stages on. What was done is told by `bc2 data report`.
    """
    from bc2.data.prep.prepare import PrepOptions

    output, read = Output.of(json=json, quiet=quiet), load_for("corpus", recipe, set_ or [])
    options = PrepOptions(engine, workers, keep_dropped=_empty(keep_dropped))
    if dry_run:
        _dry_run(read, options, output)
        return
    made = _make("corpus", read, output, fresh=fresh, options=options)
    if keep_dropped is not None and not made:
        note("nothing was written to --keep-dropped: add --fresh to make the corpus again")


def _make(kind: Kind, recipe: Recipe, output: Output, *, fresh: bool, options: Any = None) -> bool:
    """Find or make a recipe's artifact of a kind and print it; whether it was made."""
    from bc2.pipeline.session import Session
    from bc2.report.artifact_view import show_artifact

    session = Session(Registry.open(), fresh=fresh)
    artifact = session.obtain(kind, recipe, options=options)
    made = artifact in session.built
    show_artifact(artifact, output, made=made)
    return made


def _empty(folder: Path | None) -> Path | None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError("--keep-dropped is not empty", where=str(folder), todo="name another")
    return None if folder is None else folder.absolute()


def _dry_run(recipe: Recipe, options: PrepOptions, output: Output) -> None:
    from rich.console import Group

    from bc2.data.corpus_config import CorpusConfig
    from bc2.data.prep.dry_run import dry_run
    from bc2.data.prep.funnel import Funnel
    from bc2.report import description_view, funnel_view
    from bc2.report.timings import timings

    plan = dry_run(recipe.get(CorpusConfig), options)
    found, rows = plan.pop("funnel"), plan.pop("timings")
    for name, value in plan.items():
        note(f"{name}: {value}")
    took = description_view.timing_table(timings(rows))
    shown = Group(funnel_view.view(Funnel.of(found)), "", took)
    output.emit({**plan, "funnel": found, "timings": rows}, table=shown, quiet=[])


@app.command()
def tokenize(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Cut a recipe's corpus into token shards."""
    read = load_for("tokens", recipe, set_ or [])
    _make("tokens", read, Output.of(json=json, quiet=quiet), fresh=fresh)


@app.command()
def chats(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Read a recipe's conversations, in any of the usual formats, and split off held-out ones."""
    read = load_for("chats", recipe, set_ or [])
    _make("chats", read, Output.of(json=json, quiet=quiet), fresh=fresh)


@app.command()
def pairs(
    recipe: RecipeArg, set_: Set = None, fresh: Fresh = False, json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Read a recipe's comparisons of answers, in any of the usual formats, split by prompt."""
    read = load_for("pairs", recipe, set_ or [])
    _make("pairs", read, Output.of(json=json, quiet=quiet), fresh=fresh)


@app.command()
def lint(
    recipe: RecipeArg, set_: Set = None,
    row: Annotated[
        str | None,
        typer.Option(metavar="[SOURCE:]N", help="Show this row's tokens, and look at no other."),
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Rows to name of each kind of finding.")
    ] = 5,
    section: Annotated[
        Literal["sft", "reward", "dpo"] | None,
        typer.Option(help="Whose data, of a recipe with several; else the last of these."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with tokens there.")
    ] = None,
    benchmarks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Benchmarks to search for; else BC2_BENCH_DATA."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core if not given.")
    ] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Look at a recipe's conversations or pairs as its model will: errors, figures, tokens.

    The exit code is 3 if training would stop: an answer that is empty or never ends, roles out of
    order, two answers that are the same, what is too long. It is 0 if there is nothing of it, or
    the recipe leaves it out.
    """
    from bc2.launch.lint_recipe import lint_task

    if page is not None:
        check_replaceable(page)
    task = lint_task(Registry.open(), recipe, set_ or [], section)
    if row is not None:
        _show_rows(task, row, Output.of(json=json))
        return
    _lint(task, Output.of(json=json), show, page, benchmarks, workers)


def _show_rows(task: LintTask | PairLintTask, row: str, output: Output) -> None:
    from bc2.align.lint.lint import LintTask
    from bc2.align.lint.shown_pairs import find_pairs
    from bc2.align.lint.shown_tokens import find_rows
    from bc2.report import lint_view

    found = find_rows(task, row) if isinstance(task, LintTask) else find_pairs(task, row)
    output.emit([asdict(one) for one in found], table=lint_view.samples_view(found))


def _lint(
    task: LintTask | PairLintTask, output: Output, show: int, page: Path | None,
    benchmarks: Path | None, workers: int | None,
) -> None:  # fmt: skip
    from bc2.align.lint.lint import LintTask, lint
    from bc2.align.lint.pair_lint import lint_pairs
    from bc2.align.lint.shown_pairs import first_pair_row, shown_pairs
    from bc2.align.lint.shown_tokens import first_row, shown_places
    from bc2.report import lint_page, lint_view

    if isinstance(task, LintTask):
        found = lint(task, show=show, workers=workers, benchmarks=benchmarks)
        row = first_row(task)
    else:
        found = lint_pairs(task, show=show, workers=workers, benchmarks=benchmarks)
        row = first_pair_row(task)
    if page is not None:
        samples = {
            one.code: [[sample] for sample in shown_places(task, one.examples)]
            if isinstance(task, LintTask)
            else list(shown_pairs(task, one.examples))
            for one in found.findings
        }
        lint_page.write(found, page, samples, row)
        note(f"the page is {page}")
    output.emit(found.to_json(), table=lint_view.view(found, row), kept=page is not None)
    if found.errors:
        raise typer.Exit(DataError.exit_code)


@app.command(no_args_is_help=False)
def report(
    ref: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="A corpus or token shards.")
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Show ten of what each reason removed.")
    ] = False,
    contamination: Annotated[
        bool,
        typer.Option("--contamination", help="Show the matches with benchmarks, both texts."),
    ] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the funnel's page there.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write a data card there.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a corpus or token shards: documents, languages, licences, lengths, the funnel.

    Without REF the newest corpus is taken.
    """
    from bc2.data.prep.stages.decontamination.matches import read_matches
    from bc2.report import description_view, funnel_page, funnel_view

    artifact, found = _described(Registry.open(), ref)
    if (examples or page is not None) and found.funnel is None:
        raise DataError(
            f"{artifact.title} has no funnel: it was made without stages, or is no corpus",
            where=str(artifact.path),
            todo="name a corpus that `bc2 data prep` made",
        )
    if page is not None and found.funnel is not None:
        licences = {one.source: one.licence for one in found.sources if one.licence}
        matches = read_matches(found.contamination) if found.contamination else ()
        funnel_page.write(
            found.funnel, page, artifact.title, licences=licences, matches=matches,
            timings=found.timings,
        )  # fmt: skip
        note(f"the page is {page}")
    if markdown is not None:
        markdown.write_text(description_view.markdown(found, artifact.title), encoding="utf-8")
        note(f"the data card is {markdown}")
    if contamination:
        _show_contamination(artifact, found, Output.of(json=json))
        return
    shown = description_view.view(found)
    if examples and found.funnel is not None:
        shown = funnel_view.examples_view(found.funnel)
    Output.of(json=json).emit({"ref": artifact.ref, **found.as_json()}, table=shown)


def _described(registry: Registry, ref: str | None) -> tuple[Artifact, Description]:
    """A corpus or token shards, described; the newest corpus without a ref."""
    from bc2.registry.lineage import parent_of_kind
    from bc2.report.description import describe

    artifact = registry.newest("corpus") if ref is None else registry.resolve(ref)
    if artifact.kind not in ("corpus", "tokens"):
        raise UsageError(
            f"{artifact.title} is no corpus and no token shards",
            todo="see `bc2 registry list --kind corpus`",
        )
    is_corpus = artifact.kind == "corpus"
    corpus = artifact if is_corpus else parent_of_kind(registry, artifact, "corpus")
    timings = corpus.manifest.facts.get("timings", ())
    with progress("reading", None, "bytes") as bar:
        found = describe(
            artifact.path, artifact.kind, corpus=corpus.path, progress=bar, timings=timings
        )
    return artifact, found


def _show_contamination(artifact: Artifact, found: Description, output: Output) -> None:
    from bc2.data.prep.stages.decontamination.matches import read_matches
    from bc2.report.contamination import counts, matches_table

    if found.contamination is None or found.funnel is None:
        raise DataError(
            f"{artifact.title} lists no matches: it was made without [corpus.decontaminate], or "
            "by an older bc2",
            where=str(artifact.path),
            todo="make it with [corpus.decontaminate]",
        )
    if output.format == "json":
        rows = [match.model_dump() for match in read_matches(found.contamination)]
        output.emit({"ref": artifact.ref, **counts(found.funnel), "matches": rows})
    else:
        output.emit(None, table=matches_table(read_matches(found.contamination), found.funnel))


@app.command("train-quality")
def train_quality(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory for the scorer.")],
    good: Annotated[
        list[str], typer.Option(metavar="PATH", help="Good text; a file, folder or glob.")
    ],
    bad: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Bad text; without it the good text, corrupted."),
    ] = None,
    text_field: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(help="Seeds the choice of sentences.")] = 0,
    json: Json = False,
) -> None:
    """Train the scorer of sentences that [corpus.quality] and [corpus.safety] can use."""
    from bc2.data.prep.text.corrupted_sentences import corrupted
    from bc2.data.prep.text.sentence_scorer import train_scorer
    from bc2.data.readers import texts_at

    taken = texts_at(good, text_field)
    worse = texts_at(bad, text_field) if bad else corrupted(texts_at(good, text_field), seed)
    facts = train_scorer(taken, worse, out, seed=seed)
    rows = [(name, str(value)) for name, value in facts.items()]
    Output.of(json=json).emit(facts, table=table(("", ""), rows), kept=True)
