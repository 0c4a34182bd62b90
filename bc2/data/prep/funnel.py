"""What a corpus lost on its way, stage by stage: ``funnel.json`` beside ``corpus.json``.

Every number is an integer and a sum over documents, so it does not depend on how the work was
divided. Seconds are not part of it: the same input gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bc2.data.config import CorpusConfig
from bc2.data.prep.pipeline import Funnel
from bc2.data.prep.segment import EXAMPLES
from bc2.data.prep.stages.base import Stage
from bc2.data.prep.write_corpus import LENGTH_EDGES, SCORE_EDGES, Written

#: File of the funnel's facts in a corpus.
FUNNEL = "funnel.json"


def funnel_facts(
    config: CorpusConfig,
    stages: list[Stage],
    read: list[dict[str, Any]],
    funnel: Funnel,
    written: list[Written],
) -> dict[str, Any]:
    """The contents of ``funnel.json``.

    Returns:
        ``{"version", "read": {documents, bytes}, "stages": [{"name", "version", "removed":
        {reason: {documents, bytes, cut_documents, cut_bytes}}, "in", "out": [{source, lang,
        documents, bytes}], "facts"}], "malformed": {source: {reason: …}}, "lengths", "scores":
        {lang: {edges, documents}}, "examples"}``.
    """
    by_stage: dict[str, list[dict[str, Any]]] = {stage.name: [] for stage in stages}
    for part in funnel.facts:
        for entry in part["stages"]:
            by_stage[entry["name"]].append(entry)
    return {
        "version": 1,
        "read": {key: sum(unit["read"][key] for unit in read) for key in ("documents", "bytes")},
        "stages": [
            {
                "name": stage.name,
                "version": stage.version,
                "removed": _removed(by_stage[stage.name]),
                "in": _groups(entry["in"] for entry in by_stage[stage.name]),
                "out": _groups(entry["out"] for entry in by_stage[stage.name]),
                "facts": funnel.settled.get(stage.name, {}),
            }
            for stage in stages
        ],
        "malformed": _malformed(config, read),
        "lengths": _histograms((made.lengths for made in written), LENGTH_EDGES),
        "scores": _histograms((made.scores for made in written), SCORE_EDGES),
        "examples": _examples(entry for found in by_stage.values() for entry in found),
    }


def _removed(entries: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    units = ("documents", "bytes", "cut_documents", "cut_bytes")
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(units))
    for entry in entries:
        for _, _, reason, *counts in entry["removed"]:
            found[reason] = [a + b for a, b in zip(found[reason], counts, strict=True)]
    return {reason: dict(zip(units, found[reason], strict=True)) for reason in sorted(found)}


def _groups(parts: Iterable[list[list[Any]]]) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, str | None], list[int]] = defaultdict(lambda: [0, 0])
    for rows in parts:
        for source, lang, documents, size in rows:
            found[source, lang][0] += documents
            found[source, lang][1] += size
    return [
        {"source": source, "lang": lang, "documents": documents, "bytes": size}
        for (source, lang), (documents, size) in sorted(
            found.items(), key=lambda item: (item[0][0], item[0][1] or "")
        )
    ]


def _malformed(
    config: CorpusConfig, read: list[dict[str, Any]]
) -> dict[str, dict[str, dict[str, int]]]:
    """Rows that could not be read and documents that were too short, by source and reason."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for source in config.sources:
        totals: dict[str, dict[str, int]] = {}
        for unit in read:
            if unit["source"] != source.name:
                continue
            for reason, entry in unit["drops"].items():
                known = totals.setdefault(reason, {"documents": 0, "bytes": 0})
                known["documents"] += entry["documents"]
                known["bytes"] += entry["bytes"]
        if totals:
            found[source.name] = dict(sorted(totals.items()))
    return found


def _histograms(tables: Iterable[dict[str, list[int]]], edges: tuple[float, ...]) -> dict[str, Any]:
    found: dict[str, list[int]] = {}
    for table in tables:
        for lang, counts in table.items():
            known = found.setdefault(lang, [0] * len(edges))
            found[lang] = [a + b for a, b in zip(known, counts, strict=True)]
    return {
        lang: {"edges": list(edges), "documents": counts} for lang, counts in sorted(found.items())
    }


def _examples(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each stage, reason and language the EXAMPLES with the smallest rank."""
    groups: defaultdict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        for example in entry["examples"]:
            key = (example["stage"], example["reason"], example["lang"] or "")
            groups[key].append(example)
    chosen = []
    for group in groups.values():
        ranked = sorted(group, key=lambda example: (example["rank"], example["origin"]))
        chosen += [
            {key: value for key, value in example.items() if key != "rank"}
            for example in ranked[:EXAMPLES]
        ]
    return chosen
