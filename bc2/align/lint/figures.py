"""Figures of conversations: counted over all of them, none is drawn. Shapes: M conversations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bc2.align.lint.benchmark_texts import FoundBenchmarks
from bc2.align.lint.lint_report import (
    BenchmarkFound,
    Lengths,
    Overlaps,
    Packing,
    Place,
    SourceFigures,
)
from bc2.align.lint.text_scan import Overlap, TextScan
from bc2.align.samples.sample_store import Samples
from bc2.data.chats.chats import Chats
from bc2.data.splits import Split

_QUANTILES = {
    "min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99,
    "max": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class SplitFound:
    """What was found in the conversations of one split."""

    split: Split
    samples: Samples
    scan: TextScan
    source_ids: npt.NDArray[np.int64]
    """[M]"""

    @cached_property
    def copies(self) -> list[tuple[int, int]]:
        """Conversations that their own source has said before: of the first, and of each."""
        return self._copies[0]

    @property
    def copies_of_others(self) -> int:
        """Conversations that another source has said before, and their own has not."""
        return self._copies[1] - len(self.copies)

    @cached_property
    def _copies(self) -> tuple[list[tuple[int, int]], int]:
        return self.scan.copies(self.source_ids.tolist())


def place_of(chats: Chats, split: Split, index: int, why: str) -> Place:
    """Where a conversation was read."""
    one = chats.at(split, index)
    return Place(one.source, one.file, one.row, split, index, why)


def lengths_of(lengths: npt.NDArray[np.int64], trained: npt.NDArray[np.int64]) -> Lengths | None:
    """How long samples or pairs are, and how much of them is learnt; None: there is none.

    Args:
        lengths: tokens of each, of all splits.
        trained: those of them that are learnt.
    """
    if not len(lengths):
        return None
    found = np.quantile(lengths, list(_QUANTILES.values()), method="lower")
    return Lengths(
        quantiles=dict(zip(_QUANTILES, found.tolist(), strict=True)),
        mean=float(lengths.mean()),
        histogram=tuple(_histogram(lengths)),
        tokens=int(lengths.sum()),
        trained=int(trained.sum()),
        fully_trained=int(np.count_nonzero(trained == lengths)),
    )


def _histogram(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Bins that double three times in eight, whole numbers each."""
    most = int(lengths.max())
    steps = math.ceil(math.log2(most + 1) * 3) + 1
    edges = np.unique(np.ceil(2.0 ** (np.arange(steps + 1) / 3)).astype(np.int64))
    edges = np.concatenate([[0], edges])
    first = int(np.searchsorted(edges, lengths.min(), side="right")) - 1
    last = int(np.searchsorted(edges, most, side="right"))
    edges = edges[first : last + 1]
    counts, _ = np.histogram(lengths, edges)
    for start, stop, count in zip(edges, edges[1:], counts, strict=False):
        yield int(start), int(stop), int(count)


def packing_of(lengths: npt.NDArray[np.int32], rows: int, sequence_length: int) -> Packing | None:
    """How full the rows of an epoch are; None: it has no samples.

    Args:
        lengths: tokens of what is packed, each as often as it is read.
        rows: that they are packed into.
    """
    if not rows:
        return None
    tokens = int(lengths.sum(dtype=np.int64))
    return Packing(rows, sequence_length, len(lengths), tokens / (rows * sequence_length))


def source_figures(chats: Chats, found: Sequence[SplitFound]) -> tuple[SourceFigures, ...]:
    """A line for each source, of all splits."""
    languages = [one.scan.languages_by(one.source_ids.tolist()) for one in found]
    copies = Counter(int(one.source_ids[index]) for one in found for _, index in one.copies)
    figures = []
    for number, facts in enumerate(chats.facts["sources"]):
        spoken = sum((each.get(number, Counter()) for each in languages), Counter[str]())
        chosen = [one.source_ids[one.samples.index] == number for one in found]
        sums = [
            (int(one.samples.lengths[mine].sum()), int(one.samples.trained[mine].sum()))
            for one, mine in zip(found, chosen, strict=True)
        ]
        figures.append(
            SourceFigures(
                name=facts["name"],
                formats=tuple(facts["formats"]),
                rows=sum(int((one.source_ids == number).sum()) for one in found),
                times=facts["times"],
                samples=sum(int(mine.sum()) for mine in chosen),
                tokens=sum(tokens for tokens, _ in sums),
                trained=sum(trained for _, trained in sums),
                copies=copies[number],
                languages=dict(sorted(spoken.items(), key=lambda one: (-one[1], one[0]))),
                skipped=facts["skipped"],
                made=facts["made"],
                licence=facts.get("licence"),
            )
        )
    return tuple(figures)


def overlaps_of(
    chats: Chats, known: FoundBenchmarks, found: Sequence[SplitFound], show: int
) -> Overlaps:
    """What was found of each benchmark that was searched for.

    Args:
        show: places that are named for each.
    """
    texts = Counter(one.benchmark for one in known.texts)
    by_name: dict[str, list[tuple[Split, Overlap]]] = {name: [] for name in texts}
    for one in found:
        for overlap in one.scan.overlaps:
            by_name[known.texts[overlap.benchmark_text].benchmark].append((one.split, overlap))
    lines = [
        BenchmarkFound(
            benchmark=name,
            texts=texts[name],
            found=len({overlap.benchmark_text for _, overlap in here}),
            rows=len({(split, overlap.index) for split, overlap in here}),
            examples=tuple(_overlap_places(chats, known, here[:show])),
        )
        for name, here in by_name.items()
    ]
    return Overlaps(tuple(lines), known.missing, known.unreadable)


def _overlap_places(
    chats: Chats, known: FoundBenchmarks, here: Sequence[tuple[Split, Overlap]]
) -> Iterator[Place]:
    for split, overlap in here:
        theirs = known.texts[overlap.benchmark_text].place
        yield place_of(chats, split, overlap.index, f"{theirs}: “{overlap.words}”")
