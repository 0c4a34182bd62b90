"""Make a corpus from raw text: the funnel of Baichuan 2, section 2.1 (arXiv 2309.10305, figure 2).

The same input and settings give the same bytes, whatever the number of workers and the engine.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bc2.console import Progress, warn
from bc2.data import environment, versions
from bc2.data.corpus import FACTS, clear_directory
from bc2.data.corpus_config import CorpusConfig, SourceConfig
from bc2.data.inputs import hub_name, source_files
from bc2.data.prep.annotations import join_annotations
from bc2.data.prep.engine import PrepEngine
from bc2.data.prep.funnel import FUNNEL, LostPassages
from bc2.data.prep.funnel_totals import add_up_funnel
from bc2.data.prep.open_engine import EngineName, open_engine
from bc2.data.prep.pipeline import Bars, Parts, StageResults, run_stages
from bc2.data.prep.read_sources import (
    PART_BYTES,
    ReadTask,
    Unit,
    check_malformed,
    plan_units,
    read_unit,
)
from bc2.data.prep.stage_table import build_stages, passed_over
from bc2.data.prep.step_timings import TIMINGS, step_timings
from bc2.data.prep.write_corpus import (
    PartTask,
    SurveyTask,
    WrittenPart,
    WrittenSource,
    survey_part,
    write_corpus_part,
    write_source,
)
from bc2.errors import DataError, from_os_error
from bc2.files import make_directory, write_durably


@dataclass(frozen=True)
class PrepOptions:
    """How the work is done; the result does not depend on it.

    Attributes:
        engine: processes of this machine, or a Ray cluster.
        workers: processes of this machine; if None, chosen by the amount of text.
        part_bytes: UTF-8 bytes of text in a part; a worker needs a few times as much memory.
        keep_dropped: folder to which dropped documents are written, by stage; None for no folder.
    """

    engine: EngineName = "local"
    workers: int | None = None
    part_bytes: int = PART_BYTES
    keep_dropped: Path | None = None


def prepare(
    config: CorpusConfig,
    out: Path,
    *,
    work: Path | None = None,
    options: PrepOptions | None = None,
    bars: Bars | None = None,
) -> dict[str, Any]:
    """Make a corpus in `out`.

    The first of all documents with the same text stays, by the order of sources, file name and
    row. A hash of the text as it was read decides whether a document is held out, so all copies
    are on the same side, whatever their source. Memory: a few times `part_bytes` for each worker,
    and what the docstring of each stage says that `settle` needs.

    Args:
        out: an empty or missing directory; if anything fails, it is empty or missing again.
        work: a directory for this input and these settings alone. It keeps finished parts for the
            next attempt, and gets `TIMINGS` at the end; the caller deletes it. If None, a
            directory is made beside `out` and deleted.
        bars: opens progress bars.

    Returns:
        The contents of ``corpus.json``: for each source what was read, dropped (by reason) and
        written, its licence and origin; and totals.

    Raises:
        DataError: there is nothing to read, rows are malformed, or no document is left.
        RecipeError: the settings of stages do not fit each other.
        ResourceError: the disk is full, or a worker died.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError("the output directory is not empty", where=str(out), todo="name another")
    made_out = not out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)
    own = work is None
    folder = work or Path(tempfile.mkdtemp(prefix=".prepare-", dir=out.parent))
    try:
        out.mkdir(exist_ok=True)
        return _prepare(config, out, folder, options or PrepOptions(), bars or _silent)
    except OSError as error:
        clear_directory(out, itself=made_out)
        raise from_os_error(error, "writing the corpus") from error
    except BaseException:
        clear_directory(out, itself=made_out)
        raise
    finally:
        if own:
            shutil.rmtree(folder, ignore_errors=True)


def sample_of(config: CorpusConfig, size: int) -> CorpusConfig:
    """The same settings over at most `size` bytes of text of each source, none held out."""
    sources = [
        source.model_copy(update={"max_bytes": min(size, source.max_bytes or size)})
        for source in config.sources
    ]
    return config.model_copy(update={"sources": tuple(sources), "heldout_fraction": 0.0})


def _prepare(
    config: CorpusConfig, out: Path, work: Path, options: PrepOptions, bars: Bars
) -> dict[str, Any]:
    stages = build_stages(config)
    for line in passed_over(stages, config):
        warn(line)
    units = plan_units(config)
    size = sum(unit.size for unit in units)
    with open_engine(options.engine, options.workers, size) as engine:
        read = _read(config, units, work / "read", options, engine, bars)
        check_malformed(read, config.max_malformed if config.malformed == "skip" else 0.0)
        _check_read(config, read)
        parts = Parts(work / "read", [name for unit in read for name in unit["parts"]])
        results = run_stages(stages, parts, work, engine, bars, options.keep_dropped)
        written = _write(config, read, results.parts, out, engine, bars)
    facts = _corpus_facts(config, read, results, written)
    _check_left(config, facts)
    funnel = add_up_funnel(config, stages, read, results, written)
    for stage in stages:
        if stage.annotations_file is not None:
            join_annotations(work, stage.name, out / stage.annotations_file)
    write_durably(out / FUNNEL, _pretty(funnel.as_json()))
    write_durably(out / FACTS, _pretty(facts))
    (work / TIMINGS).write_bytes(_pretty(step_timings(funnel, read, results, written)))
    _say_lost(funnel.lost_passages)
    return facts


def _say_lost(lost: LostPassages) -> None:
    if lost.passages:
        warn(
            f"corpus.passages: passages lost with their first copy: {lost.passages:,} "
            f"({lost.bytes:,} bytes): they were cut as copies, and later stages removed the first "
            "copies; to keep such text, raise paragraph_repeats and sentence_repeats, or leave out "
            "[corpus.passages]"
        )


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


@contextmanager
def _silent(title: str, total: float | None, unit: str) -> Iterator[Progress]:
    yield lambda advance, detail="": None


def _read(
    config: CorpusConfig,
    units: list[Unit],
    folder: Path,
    options: PrepOptions,
    engine: PrepEngine,
    bars: Bars,
) -> list[dict[str, Any]]:
    make_directory(folder)
    tasks = [
        ReadTask(unit, config.malformed, config.min_characters, folder, options.part_bytes)
        for unit in units
    ]
    found = []
    with bars("reading", sum(unit.size for unit in units) or None, "bytes") as bar:
        for unit, facts in zip(units, engine.map(read_unit, tasks), strict=True):
            found.append(facts)
            bar(unit.size, facts["source"])
    return found


def _check_read(config: CorpusConfig, read: list[dict[str, Any]]) -> None:
    for source in config.sources:
        units = [unit for unit in read if unit["source"] == source.name]
        if not any(unit["read"]["documents"] or unit["drops"] for unit in units):
            raise DataError(
                f"source {source.name!r} has no documents",
                where=source.path or source.hf or source.environment,
                todo="give it text, or take it out of the recipe",
            )


def _write(
    config: CorpusConfig, read: list[dict[str, Any]], parts: Parts, out: Path, engine: PrepEngine,
    bars: Bars,
) -> list[WrittenSource]:  # fmt: skip
    tasks = [
        SurveyTask(parts.path(name), unit["source"], config.heldout_fraction)
        for unit in read
        for name in unit["parts"]
    ]
    surveys = [*zip(tasks, engine.map(survey_part, tasks), strict=True)]
    size = sum(int(sizes.sum()) for _, survey in surveys for sizes in survey.sizes.values())
    found = []
    with bars("writing", size, "bytes") as bar:

        def run(tasks: Iterable[PartTask]) -> Iterator[WrittenPart]:
            for part in engine.map(write_corpus_part, tasks):
                bar(part.facts["bytes"], part.facts["file"])
                yield part

        for source in config.sources:
            mine = [survey for task, survey in surveys if task.source == source.name]
            found.append(write_source(source.name, mine, out, config.part_bytes, run))
    return found


def _corpus_facts(
    config: CorpusConfig,
    read: list[dict[str, Any]],
    results: StageResults,
    written: list[WrittenSource],
) -> dict[str, Any]:
    entries = []
    for source, made in zip(config.sources, written, strict=True):
        shared = {
            **_provenance(source),
            "read": _read_totals(source.name, read),
            "drops": _drops(source.name, read, results),
        }
        for number, (name, splits) in enumerate(made.strata.items()):
            entry: dict[str, Any] = {"name": name}
            if name != source.name:
                entry["source"] = source.name
            # What was read and dropped is counted for the source, so only its first stratum has it.
            own = shared if number == 0 else {**shared, "read": _ZERO, "drops": {}}
            entries.append({**entry, **own, **splits})
    weights = results.settled.get("weights")
    facts: dict[str, Any] = {
        "version": versions.CORPUS,
        "heldout_fraction": config.heldout_fraction,
    }
    facts |= {"read": {unit: _sum(entries, "read", unit) for unit in ("documents", "bytes")}}
    for split in ("train", "heldout"):
        units = ("documents", "bytes", "characters")
        facts[split] = {unit: _sum(entries, split, unit) for unit in units}
    if weights is not None:
        present = {entry["name"] for entry in entries}
        facts["weights"] = {n: w for n, w in weights["weights"].items() if n in present}
    return {**facts, "sources": entries}


_ZERO = {"documents": 0, "bytes": 0}


def _sum(entries: list[dict[str, Any]], side: str, unit: str) -> int:
    return sum(int(entry[side][unit]) for entry in entries)


def _read_totals(source: str, read: list[dict[str, Any]]) -> dict[str, int]:
    units = [unit["read"] for unit in read if unit["source"] == source]
    return {key: sum(unit[key] for unit in units) for key in ("documents", "bytes")}


def _drops(
    source: str, read: list[dict[str, Any]], results: StageResults
) -> dict[str, dict[str, int]]:
    """Whole documents dropped, by reason."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for unit in read:
        if unit["source"] == source:
            for reason, entry in unit["drops"].items():
                documents[reason] += entry["documents"]
                sizes[reason] += entry["bytes"]
    for part in results.facts:
        for stage in part["stages"]:
            for row in stage["removed"]:
                if row.source == source and row.documents:
                    documents[row.reason] += row.documents
                    sizes[row.reason] += row.bytes
    return {r: {"documents": documents[r], "bytes": sizes[r]} for r in sorted(documents)}


def _provenance(source: SourceConfig) -> dict[str, Any]:
    """lang, licence and origin of a source."""
    if source.environment is not None:
        text = environment.TEXTS[source.environment]
        origin = {"environment": source.environment, **text.origin(source_files(source))._asdict()}
        return {
            "lang": source.lang or text.lang,
            "licence": source.licence or text.licence,
            "origin": origin,
        }
    if source.hf is not None:
        hub = {"hf": hub_name(source.hf), "config": source.hf_config, "split": source.split}
        return {
            "lang": source.lang,
            "licence": source.licence,
            "origin": {**hub, "revision": source.revision},
        }
    # Paths of files are not recorded: the same files elsewhere must give the same corpus.
    origin = {"files": len(source_files(source))}
    return {"lang": source.lang, "licence": source.licence, "origin": origin}


def _check_left(config: CorpusConfig, facts: dict[str, Any]) -> None:
    if not facts["train"]["documents"] and not facts["heldout"]["documents"]:
        lost = {name: n for source in facts["sources"] for name, n in source["drops"].items()}
        reasons = ", ".join(lost) or "no reason"
        raise DataError(
            f"every document was dropped ({reasons})",
            todo="look at corpus.min_characters, the stages' limits, the sources and text_field",
        )
    if not facts["train"]["documents"]:
        raise DataError(
            "no document is left for training: all are held out",
            todo="lower corpus.heldout_fraction or give more documents",
        )
    if config.heldout_fraction > 0 and not facts["heldout"]["documents"]:
        count = facts["train"]["documents"]
        raise DataError(
            f"no document is held out: {config.heldout_fraction:g} of {count:,} documents is none",
            todo="raise corpus.heldout_fraction, give more (shorter) documents, or set it to 0",
        )
