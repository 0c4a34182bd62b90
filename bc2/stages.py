"""From a recipe to artifacts: which stage needs which, and what need not run again.

Each function here finds the artifact that a recipe's stage makes, by the stage's key,
or makes and registers it, upstream stages first. A stage's input is, in this order:
what its section names (a ref, or another recipe), this recipe's own section, or the
newest artifact of the kind, which is then said on stderr.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2 import recipe as recipes
from bc2.console import Output, note, progress, table
from bc2.data.config import CorpusConfig, TokensConfig
from bc2.errors import DataError, RecipeError, RefError, UsageError
from bc2.files import lock_directory, make_directory
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import check_layout, parallel_of
from bc2.ranks import first, world_size
from bc2.recipe import Recipe, Section
from bc2.registry import Artifact, Draft, Kind, Registry, check_name, stage_key
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE, TokenizerConfig
from bc2.train.duration import Duration
from bc2.train.pretrain_config import PretrainConfig, check_batches, check_context

if TYPE_CHECKING:
    from bc2.data.prep.prepare import How
    from bc2.report.description import Description
    from bc2.tokenizer.report import CompressionReport
    from bc2.train.run import Run

#: Bytes of each source that a dry run takes.
SAMPLE_BYTES = 2 << 20

Stage = Callable[["Session", Recipe], Artifact]


@dataclass
class Session:
    """One command's use of the registry: what it built, and whether to build anew."""

    registry: Registry
    fresh: bool = False
    """Build the asked-for stage again even if it is registered."""
    built: list[Artifact] = field(default_factory=list)
    """Artifacts that were made by this command, in order."""
    known: dict[str, Artifact] = field(default_factory=dict)
    """Artifacts found or made so far by stage key: two stages may share an input."""


def corpus(session: Session, recipe: Recipe, how: How | None = None) -> Artifact:
    """The corpus of [corpus]: read, taken through the stages of the funnel, split, written."""
    from bc2.data.inputs import inputs
    from bc2.data.prep import prepare
    from bc2.data.prep.recipe import build_stages, stage_digests
    from bc2.data.prep.timings import TIMINGS

    config = recipe.get(CorpusConfig)
    cache = session.registry.home / "digests.json"
    stages = build_stages(config)
    found = inputs(config, cache=cache)
    settings = {
        **config.keyed(),
        "inputs": [file._asdict() for file in found],
        "stages": {stage.name: stage.version for stage in stages},
        "files": stage_digests(stages),
    }
    key = stage_key("corpus", prepare.VERSION, settings, ())
    work = session.registry.work / f"corpus-{key}"
    done = work / "parts"

    def make(out: Path) -> Mapping[str, Any]:
        facts = prepare.prepare(config, out, work=done, how=how, bars=progress)
        if inputs(config, cache=cache) != found:
            # What was read is kept under the key of what is gone.
            shutil.rmtree(done)
            raise DataError(
                "an input changed while it was read", todo="run it again when the files rest"
            )
        return {**facts, "timings": json.loads((done / TIMINGS).read_bytes())}

    make_directory(work)
    with lock_directory(work, wait=True):
        artifact = _found_or_made(session, recipe, "corpus", key, (), make)
        # What a killed attempt finished is of use until the whole is registered.
        if done.exists():
            shutil.rmtree(done)
    return artifact


def corpus_sample(recipe: Recipe, how: How) -> dict[str, Any]:
    """What [corpus] would do, tried on the first of each source; nothing is registered.

    Returns:
        The stages with their settings, the inputs, and the sample's ``funnel`` and ``timings``.
    """
    from bc2.data.inputs import describe_inputs
    from bc2.data.prep import prepare
    from bc2.data.prep.funnel import FUNNEL
    from bc2.data.prep.recipe import build_stages
    from bc2.data.prep.timings import TIMINGS

    config = recipe.get(CorpusConfig)
    names = [stage.name for stage in build_stages(config)]
    sample = prepare.sample_of(config, SAMPLE_BYTES)
    with tempfile.TemporaryDirectory(prefix="bc2-dry-run-") as folder:
        work = Path(folder) / "work"
        prepare.prepare(sample, Path(folder) / "corpus", work=work, how=how, bars=progress)
        took = json.loads((work / TIMINGS).read_bytes())
        funnel = json.loads((Path(folder) / "corpus" / FUNNEL).read_bytes())
    return {
        "stages": ", ".join(names),
        **{f"source {name}": told for name, told in describe_inputs(config).items()},
        "sample": f"at most {SAMPLE_BYTES:,} bytes of each source",
        "funnel": funnel,
        "timings": took,
    }


def description(registry: Registry, ref: str | None) -> tuple[Artifact, Description]:
    """A corpus or token shards, described; the newest corpus without a ref.

    Raises:
        RefError: no such artifact.
        UsageError: it is of another kind.
    """
    from bc2.report.description import describe

    artifact = registry.newest("corpus") if ref is None else registry.resolve(ref)
    if artifact.kind not in ("corpus", "tokens"):
        raise UsageError(
            f"{artifact.title} is no corpus and no token shards",
            todo="see `bc2 registry list --kind corpus`",
        )
    source = artifact if artifact.kind == "corpus" else _parent(registry, artifact, "corpus")
    timings = source.manifest.facts.get("timings", ())
    with progress("reading", None, "bytes") as bar:
        found = describe(
            artifact.path, artifact.kind, corpus=source.path, progress=bar, timings=timings
        )
    return artifact, found


def tokenizer(session: Session, recipe: Recipe) -> Artifact:
    """The tokenizer of [tokenizer], trained on a weighted sample of its corpus."""
    from bc2.tokenizer import train

    config = recipe.get(TokenizerConfig)
    parent = _upstream(session, recipe, config.corpus, "corpus", CorpusConfig, corpus)
    parents = (parent,)
    key = stage_key("tokenizer", train.VERSION, config.keyed(), _digests(parents))

    def make(out: Path) -> Mapping[str, Any]:
        from bc2.data.sample import sample_texts

        _check_all(parent)
        texts = sample_texts(parent.path, config.sample_bytes, config.weights, config.seed)
        with progress("sampling", config.sample_bytes, "bytes") as bar:
            trained = train.train(texts, config, progress=bar)
        (out / TOKENIZER_FILE).write_bytes(trained.model)
        return trained.facts

    return _found_or_made(session, recipe, "tokenizer", key, parents, make)


def tokens(session: Session, recipe: Recipe) -> Artifact:
    """The token shards of [tokens]: its corpus, in its tokenizer's ids."""
    from bc2.data import tokenize
    from bc2.data.corpus import corpus_facts

    config = recipe.get(TokensConfig) if recipe.has(TokensConfig) else TokensConfig()
    source = _upstream(session, recipe, config.corpus, "corpus", CorpusConfig, corpus)
    pieces = _upstream(session, recipe, config.tokenizer, "tokenizer", TokenizerConfig, tokenizer)
    parents = (source, pieces)
    key = stage_key("tokens", tokenize.VERSION, {}, _digests(parents))
    work = session.registry.work / f"tokens-{key}"
    done = work / "shards"

    def make(out: Path) -> Mapping[str, Any]:
        _check_all(source)
        model = pieces.file(TOKENIZER_FILE)
        facts = corpus_facts(source.path)
        size = facts["train"]["bytes"] + facts["heldout"]["bytes"]
        with progress("tokenizing", size, "bytes") as bar:
            return tokenize.tokenize(
                source.path, model, out, work=done, workers=config.workers, progress=bar
            )

    make_directory(work)
    with lock_directory(work, wait=True):
        artifact = _found_or_made(session, recipe, "tokens", key, parents, make)
        # What a killed attempt finished is of use until the whole is registered.
        if done.exists():
            shutil.rmtree(done)
    return artifact


def base_model(session: Session, recipe: Recipe, command: list[str]) -> Artifact:
    """The finished base model of [pretrain] and [model].

    Args:
        command: what a person types to go on with the run if it stops.
    """
    check(recipe)
    from bc2.plan.check import check_memory_fits
    from bc2.report.curves import draw_run, redraw
    from bc2.train.device import pick_device
    from bc2.train.pretrain import pretrain
    from bc2.train.rendezvous import check_ranks_agree
    from bc2.train.runs import RunFolder

    # What can be wrong is wrong before an hour of tokenizing, not after.
    model, config = recipe.get(ModelConfig), recipe.get(PretrainConfig)
    pick_device(config.device)
    if world_size() > 1:
        parallel = parallel_of(recipe)
        check_ranks_agree(recipe.name, config, model, parallel, session.registry.work)
    named = config.tokens
    shards = _upstream(session, recipe, named, "tokens", TokensConfig, tokens)
    run = _plan(session, recipe, shards, command)
    known = None if session.fresh else run.finished(session.registry)
    # Ranks find out together: they may not see the same home.
    if known is None or world_size() > 1:
        check_memory_fits(recipe, world_size())
        with shards.hold():
            artifact = pretrain(run, session.registry, fresh=session.fresh)
        if artifact != known:
            if first():
                draw_run(RunFolder(run.folder(session.registry)))
            session.built.append(artifact)
            return artifact
        known = artifact
    note(f"{known.title} is registered already ({known.ref})")
    if first():
        redraw(RunFolder(run.folder(session.registry)))
    return known


def base_inputs(session: Session, recipe: Recipe, world: int) -> Artifact:
    """The token shards of [pretrain], for ranks that are still to be started.

    Args:
        world: how many there will be, at least.

    Raises:
        RecipeError: the recipe is broken, or does not fit so many ranks.
    """
    check(recipe)
    parallel, training = parallel_of(recipe), recipe.get(PretrainConfig)
    check_layout(parallel, recipe.get(ModelConfig), world, recipe.where(("parallel",)))
    check_batches(training, parallel, world)
    return _upstream(session, recipe, training.tokens, "tokens", TokensConfig, tokens)


def _plan(session: Session, recipe: Recipe, shards: Artifact, command: list[str]) -> Run:
    from bc2.train.run import Run

    model = recipe.get(ModelConfig)
    index = json.loads(shards.file("tokens.json").read_text())
    if model.vocab_size < index["vocab_size"]:
        raise RecipeError(
            f"model.vocab_size = {model.vocab_size} is smaller than the {index['vocab_size']} "
            f"pieces of the tokenizer of {shards.title}",
            where=recipe.where(("model", "vocab_size")),
            todo=f"set model.vocab_size = {index['vocab_size']}",
        )
    pieces = _parent(session.registry, shards, "tokenizer")
    config = recipe.get(PretrainConfig)
    resolved, parallel = recipe.resolved(), parallel_of(recipe)
    return Run.resolve(recipe.name, config, model, shards, pieces, resolved, command, parallel)


def check(recipe: Recipe) -> None:
    """Everything that can be known to be wrong before any work.

    Raises:
        RecipeError: a section is broken, or two sections contradict each other.
    """
    try:
        check_name(recipe.name)
    except UsageError as error:
        raise RecipeError(error.what, where=recipe.where(("name",)), todo=error.todo) from None
    for _ in recipe.sections():
        pass
    if recipe.has(PretrainConfig):
        _check_lengths(recipe)
    if recipe.has(ModelConfig) and recipe.has(TokenizerConfig):
        model, pieces = recipe.get(ModelConfig), recipe.get(TokenizerConfig)
        if model.vocab_size < pieces.vocab_size:
            raise RecipeError(
                f"model.vocab_size = {model.vocab_size} is smaller than "
                f"tokenizer.vocab_size = {pieces.vocab_size}",
                where=recipe.where(("model", "vocab_size")),
                todo=f"set model.vocab_size = {pieces.vocab_size}",
            )
    if recipe.has(ModelConfig) and recipe.has(PretrainConfig):
        check_context(recipe)


def _check_lengths(recipe: Recipe) -> None:
    """The warm-up ends within the run, as far as that is known without the data."""
    config = recipe.get(PretrainConfig)
    total, warmup = Duration.parse(config.length), Duration.parse(config.schedule.warmup)
    if total.unit == warmup.unit and warmup.amount >= total.amount:
        raise RecipeError(
            f"the warm-up of {config.schedule.warmup} does not end within the run of "
            f"{config.length}",
            where=recipe.where(("pretrain", "schedule", "warmup")),
            todo="shorten the warm-up or lengthen the run",
        )


def _upstream(
    session: Session, recipe: Recipe, named: str | None, kind: Kind, own: type[Section],
    stage: Stage,
) -> Artifact:  # fmt: skip
    """The artifact a stage takes: named, this recipe's own, or the newest."""
    session = replace(session, fresh=False)
    if named is not None:
        beside = recipe.path.parent / named
        if named.endswith(".toml"):
            return stage(session, recipes.load(beside if beside.is_file() else named))
        return session.registry.resolve(named, kind)
    makes_tokens = recipe.has(CorpusConfig) or recipe.has(TokenizerConfig)
    if recipe.has(own) or (kind == "tokens" and makes_tokens):
        return stage(session, recipe)
    newest = session.registry.newest(kind)
    note(f"the recipe names no {kind}: taking the newest, {newest.title} ({newest.ref})")
    return newest


def _found_or_made(
    session: Session, recipe: Recipe, kind: Kind, key: str, parents: tuple[Artifact, ...],
    make: Callable[[Path], Mapping[str, Any]],
) -> Artifact:  # fmt: skip
    if key in session.known:
        return session.known[key]
    known = None if session.fresh else session.registry.find(kind, key)
    if known is not None:
        note(f"{known.title} is registered already ({known.ref})")
        session.known[key] = known
        return known
    note(f"making {kind}/{recipe.name}")
    draft = Draft(
        kind=kind,
        name=recipe.name,
        key=key,
        parents=_digests(parents),
        recipe=recipe.resolved(),
    )
    with ExitStack() as held:
        for parent in parents:
            held.enter_context(parent.hold())
        staged = held.enter_context(session.registry.stage(draft))
        facts = make(staged.path)
        artifact = staged.publish(facts=facts)
    session.built.append(artifact)
    session.known[key] = artifact
    return artifact


def _digests(artifacts: tuple[Artifact, ...]) -> tuple[str, ...]:
    return tuple(artifact.digest for artifact in artifacts)


def _check_all(artifact: Artifact) -> None:
    for name in artifact.files():
        artifact.file(name)


def _parent(registry: Registry, artifact: Artifact, kind: Kind) -> Artifact:
    for parent in registry.parents(artifact):
        if parent.kind == kind:
            return parent
    raise RefError(
        f"{artifact.title} has no {kind} among its parents",
        where=str(artifact.path),
        todo=f"name one that bc2 made, or import its {kind} as well",
    )


def compression_report(
    session: Session, tokenizer: Artifact, against: list[Path]
) -> CompressionReport:
    """Tokens per byte and per character of a tokenizer beside other SentencePiece models.

    Measured on the held-out documents of the tokenizer's corpus, by language.
    """
    from bc2.data.corpus import read_corpus
    from bc2.tokenizer.report import compression

    source = _parent(session.registry, tokenizer, "corpus")
    _check_all(source)
    models = {tokenizer.title: tokenizer.file(TOKENIZER_FILE)}
    models.update({str(path): path for path in against})
    documents = read_corpus(source.path, "heldout")
    return compression(models, ((d.lang or d.source, d.text) for d in documents))


def show(artifact: Artifact, session: Session, output: Output) -> None:
    """Print what a stage made or found: one artifact, in the form asked for."""
    result = {
        "ref": artifact.ref,
        "kind": artifact.kind,
        "name": artifact.name,
        "digest": artifact.digest,
        "path": str(artifact.path),
        "made": artifact in session.built,
        "facts": dict(artifact.manifest.facts),
    }
    rows = [("ref", artifact.ref), ("artifact", artifact.title), ("path", str(artifact.path))]
    facts = {k: value for k, value in artifact.manifest.facts.items() if k != "timings"}
    rows += [(key, _short(value)) for key, value in facts.items()]
    drawn = table(("", ""), rows)
    timings = artifact.manifest.facts.get("timings")
    output.emit(result, table=_timed(drawn, timings) if timings else drawn, quiet=[artifact.ref])


def _timed(drawn: Any, rows: list[dict[str, Any]]) -> Any:
    """A table, and below it how long each step took."""
    from rich.console import Group

    from bc2.report.description_view import timing_table
    from bc2.report.timings import timings

    return Group(drawn, "", timing_table(timings(rows)))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
