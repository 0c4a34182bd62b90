"""Add up the funnel of a whole corpus from what the stages counted in each part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from bc2.data.corpus_config import CorpusConfig
from bc2.data.prep.funnel import (
    Amount,
    Example,
    Funnel,
    GroupAmount,
    Histogram,
    Removal,
    StageAmounts,
)
from bc2.data.prep.pipeline import StageResults
from bc2.data.prep.segment import EXAMPLES, GroupRow, StageFacts
from bc2.data.prep.stages.base import PrepStage
from bc2.data.prep.write_corpus import LENGTH_EDGES, SCORE_EDGES, WrittenSource


def add_up_funnel(
    config: CorpusConfig,
    stages: list[PrepStage],
    read: list[dict[str, Any]],
    results: StageResults,
    written: list[WrittenSource],
) -> Funnel:
    """The funnel of a corpus.

    Args:
        read: what `bc2.data.prep.read_sources.read_unit` returned for each unit.
        written: what `bc2.data.prep.write_corpus.write_source` returned for each source.
    """
    by_stage: dict[str, list[StageFacts]] = {stage.name: [] for stage in stages}
    for part in results.facts:
        for facts in part["stages"]:
            by_stage[facts["name"]].append(facts)
    return Funnel(
        version=1,
        read=_amount(unit["read"] for unit in read),
        stages=tuple(
            StageAmounts(
                name=stage.name,
                version=stage.version,
                removed=_removed(by_stage[stage.name]),
                before=_groups(facts["in"] for facts in by_stage[stage.name]),
                after=_groups(facts["out"] for facts in by_stage[stage.name]),
                facts=results.settled.get(stage.name, {}),
            )
            for stage in stages
        ),
        malformed=_malformed(config, read),
        lengths=_histograms((made.lengths for made in written), LENGTH_EDGES),
        scores=_histograms((made.scores for made in written), SCORE_EDGES),
        examples=_examples(facts for found in by_stage.values() for facts in found),
    )


def _amount(counts: Iterable[dict[str, int]]) -> Amount:
    found = list(counts)
    return Amount(
        documents=sum(one["documents"] for one in found), bytes=sum(one["bytes"] for one in found)
    )


def _removed(parts: list[StageFacts]) -> dict[str, Removal]:
    """What a stage removed from all parts, by reason."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for facts in parts:
        for row in facts["removed"]:
            found[row.reason].update(
                documents=row.documents,
                bytes=row.bytes,
                cut_documents=row.cut_documents,
                cut_bytes=row.cut_bytes,
            )
    return {reason: Removal(**found[reason]) for reason in sorted(found)}


def _groups(parts: Iterable[list[GroupRow]]) -> tuple[GroupAmount, ...]:
    """Documents and bytes of all parts, by source and language."""
    found: defaultdict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    for rows in parts:
        for row in rows:
            found[row.source, row.lang].update(documents=row.documents, bytes=row.bytes)
    ordered = sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    return tuple(
        GroupAmount(source=source, lang=lang, **counts) for (source, lang), counts in ordered
    )


def _malformed(config: CorpusConfig, read: list[dict[str, Any]]) -> dict[str, dict[str, Amount]]:
    """Rows that could not be read and documents that were too short, by source and reason."""
    found: dict[str, dict[str, Amount]] = {}
    for source in config.sources:
        drops: defaultdict[str, list[dict[str, int]]] = defaultdict(list)
        for unit in read:
            if unit["source"] == source.name:
                for reason, counts in unit["drops"].items():
                    drops[reason].append(counts)
        if drops:
            found[source.name] = {reason: _amount(drops[reason]) for reason in sorted(drops)}
    return found


def _histograms(
    tables: Iterable[dict[str, list[int]]], edges: tuple[int | float, ...]
) -> dict[str, Histogram]:
    found: dict[str, list[int]] = {}
    for table in tables:
        for lang, counts in table.items():
            known = found.setdefault(lang, [0] * len(edges))
            found[lang] = [a + b for a, b in zip(known, counts, strict=True)]
    return {
        lang: Histogram(edges=edges, documents=tuple(counts))
        for lang, counts in sorted(found.items())
    }


def _examples(parts: Iterable[StageFacts]) -> tuple[Example, ...]:
    """For each stage, reason and language, the EXAMPLES with the smallest rank."""
    groups: defaultdict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for facts in parts:
        for example in facts["examples"]:
            key = (example["stage"], example["reason"], example["lang"] or "")
            groups[key].append(example)
    chosen: list[Example] = []
    for group in groups.values():
        ranked = sorted(group, key=lambda example: (example["rank"], example["origin"]))
        chosen += [Example.model_validate(example) for example in ranked[:EXAMPLES]]
    return tuple(chosen)
