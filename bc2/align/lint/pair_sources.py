"""A line for each source of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from bc2.align.lint.lint_report import SourceFigures
from bc2.align.lint.pairs_found import PairsFound
from bc2.data.pairs.pairs import Pairs


def pair_sources(
    pairs: Pairs, found: Sequence[PairsFound], *, ends: bool
) -> Iterator[SourceFigures]:
    """Counts of each source over both splits.

    Args:
        ends: see `bc2.align.pairs.packed_pairs.PackedPairs.ends`.
    """
    languages = [
        one.scan.languages_by(pairs.answers.source_ids(one.split).tolist()) for one in found
    ]
    for number, facts in enumerate(pairs.facts["sources"]):
        spoken = sum((each.get(number, Counter()) for each in languages), Counter[str]())
        chosen = [one.matched.table.source_ids == number for one in found]
        both = list(zip(found, chosen, strict=True))
        trained = [one.samples.trained[one.matched.places[mine]].sum() for one, mine in both]
        yield SourceFigures(
            name=facts["name"],
            formats=tuple(facts["formats"]),
            rows=sum(int((one.table.source_ids == number).sum()) for one in found),
            times=facts["times"],
            samples=sum(int(mine.sum()) for mine in chosen),
            tokens=sum(int((one.matched.lengths[mine] + 2 * ends).sum()) for one, mine in both),
            trained=int(sum(trained)),
            copies=sum(one.source(n) == facts["name"] for one in found for _, n in one.copies),
            languages=dict(sorted(spoken.items(), key=lambda one: (-one[1], one[0]))),
            skipped={**facts["skipped"], **facts.get("unpaired", {})},
            made=facts["made"],
            licence=facts.get("licence"),
        )
