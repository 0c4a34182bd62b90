"""Find documents with text of benchmarks: a benchmark cannot measure a model trained on its text.

After GPT-3 (Brown et al. 2020, appendix C): a document matches if it has 13 consecutive words of a
benchmark's text, or the whole text if that is shorter. Case, white space, punctuation and the way
characters are written (NFKC) are ignored. In `bc2.data.prep.stages.decontamination`, `ngram_index`
defines what a word is, `folding` which characters are alike, and `benchmark_texts` reads the texts
of benchmarks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.prep.settings import DecontaminateSettings
from bc2.data.prep.stages.base import (
    DETAIL,
    Outcome,
    PrepStage,
    RemovedRow,
    WorkingSet,
    removed,
)
from bc2.data.prep.stages.decontamination.benchmark_texts import (
    Item,
    benchmark_files,
    read_benchmark,
    read_task,
)
from bc2.data.prep.stages.decontamination.matches import CONTAMINATION, MATCHES, BenchmarkMatch
from bc2.data.prep.stages.decontamination.ngram_index import NgramIndex, Sizes, Units
from bc2.data.prep.text.excerpts import beginning, excerpt
from bc2.data.prep.text.piece_scores import SCORES, scores_left
from bc2.data.prep.text.sentences import cut_sentences, divide
from bc2.files import sha256_file

REASON = "benchmark_overlap"

#: Characters of a match that are listed: on either side of the shared text, and of that itself.
_AROUND, _SHARED = 100, 400

#: The table that `keys` returns, a row for each match: the n-gram's number in the index, and the
#: characters of the text that it matches.
KEYS = pa.schema(
    [
        pa.field("pos", pa.int64()),
        pa.field("gram", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("stop", pa.int32()),
    ]
)

#: Characters of text that are searched at a time: about 60 bytes of memory each, few enough for the
#: processor's cache.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class BenchmarkIndex:
    """The benchmark texts, and the index of their n-grams."""

    index: NgramIndex
    items: pa.Table
    """A row for each `Item`: benchmark, place, text, and whether it is too short to be found."""


class DecontaminateStage(PrepStage):
    """Finds documents that share text with benchmarks; drops them, cuts the text, or lists them.

    `keys` reads all text and finds every match. `settle` removes matches that are common phrases
    and counts the others. `apply` changes only documents with matches. An n-gram that several
    items have counts for the first of them. A document's detail holds the benchmark, the place of
    the item, the number of other items that match, and both texts. The annotations list every
    match.

    Memory: the index takes about 30 bytes for each word of the benchmarks; after `prepare`, the
    processes of a machine share it. `settle` holds about 120 bytes for each match.
    """

    name: ClassVar[str] = "decontaminate"
    version: ClassVar[int] = 3
    reasons: ClassVar[tuple[str, ...]] = (REASON,)
    needs_all: ClassVar[bool] = True
    annotations_file: ClassVar[str | None] = CONTAMINATION

    def __init__(self, settings: DecontaminateSettings):
        self.settings = settings
        self._folder: Path | None = None

    def check(self) -> None:
        """Read every benchmark, so that a missing file is found before any work.

        Raises:
            RecipeError: lm-eval has no such task.
            DataError: a file or a field is missing, or a row cannot be read.
        """
        for _ in _items(self.settings):
            pass

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of every benchmark file, and of the questions of every task."""
        found = {
            f"{benchmark.name}/{number:06d}": sha256_file(file)
            for benchmark in self.settings.benchmarks
            for number, file in enumerate(benchmark_files(benchmark))
        }
        for task in self.settings.tasks:
            digest = hashlib.sha256()
            for item in read_task(task, self.settings.task_path):
                digest.update(f"{len(item.text)}:{item.text}".encode())
            found[f"lm-eval:{task}"] = digest.hexdigest()
        return found

    def prepare(self, folder: Path) -> None:
        """Build the index once, in a folder that every worker can read.

        Without this, each process builds its own index; the results are the same.
        """
        folder.mkdir(parents=True, exist_ok=True)
        prepared = _built(self.settings)
        prepared.index.save(folder)
        pq.write_table(prepared.items, folder / "items.parquet")
        self._folder = folder

    def prepared(self) -> BenchmarkIndex:
        """The index that `prepare` wrote; without it, one that this process builds."""
        return _built(self.settings) if self._folder is None else _loaded(self._folder)

    def keys(self, table: pa.Table) -> pa.Table:
        """One row for each match, in the order of `pos` and of the text."""
        index = self.prepared().index
        found = [KEYS.empty_table()]
        for first, texts in _chunks(table["text"].to_pylist()):
            units = Units.of(texts)
            at, gram = index.find(units)
            pos = table["pos"].to_numpy()[first + units.text[at]]
            stop = units.stop[at + index.size[gram] - 1]
            columns = [pos, gram, units.start[at], stop]
            found.append(pa.table([pa.array(c) for c in columns], names=KEYS.names).cast(KEYS))
        return pa.concat_tables(found)

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Remove the matches of common n-grams, and write the verdicts.

        Returns:
            Numbers of: matches; common_grams; pairs (of a document and an item that match);
            not_listed (pairs beyond `listed` documents of an item). And, for each benchmark, the
            numbers of its texts, of those too short to find, of those found, and of documents.
        """
        tables = [pq.read_table(work.keys(name), schema=KEYS) for name in work.parts]
        found = pa.concat_tables([KEYS.empty_table(), *tables]).sort_by(
            [("pos", "ascending"), ("start", "ascending"), ("gram", "ascending")]
        )
        common = self._common(found)
        kept = found.filter(pc.invert(pc.is_in(found["gram"], value_set=pa.array(common))))
        pairs, listed = self._pairs(kept)
        work.hand_out(kept.append_column("listed", pa.array(listed)))
        facts = {"matches": len(found), "common_grams": len(common), **pairs}
        return {**facts, "benchmarks": self._counts(kept)}

    def _common(self, found: pa.Table) -> npt.NDArray[np.int32]:
        """The n-grams that are in more documents than the setting `common` allows."""
        pairs = found.group_by(["gram", "pos"]).aggregate([])
        grams, documents = np.unique(pairs["gram"].to_numpy(), return_counts=True)
        most = self.settings.common
        return grams[documents > most] if most is not None else grams[:0]

    def _pairs(self, found: pa.Table) -> tuple[dict[str, int], npt.NDArray[np.bool_]]:
        """Count the pairs of a document and an item that match.

        Returns:
            The number of pairs, and of those that are not listed; and whether each match belongs
            to a listed pair [matches].
        """
        item = self.prepared().index.text[found["gram"].to_numpy()]
        pos = found["pos"].to_numpy()
        order = np.lexsort((pos, item))
        next_item = np.diff(item[order], prepend=-1) != 0
        next_pair = next_item | (np.diff(pos[order], prepend=-1) != 0)
        number = np.cumsum(next_pair)
        first = np.maximum.accumulate(np.where(next_item, number, 0))
        listed = np.zeros(len(order), bool)
        listed[order] = number - first < self.settings.listed
        pairs = int(next_pair.sum())
        shown = int((next_pair & listed[order]).sum())
        return {"pairs": pairs, "not_listed": pairs - shown}, listed

    def _counts(self, found: pa.Table) -> dict[str, dict[str, int]]:
        """For each benchmark: the numbers of texts, too short texts, found texts and documents."""
        prepared = self.prepared()
        item = prepared.index.text[found["gram"].to_numpy()]
        names = prepared.items["benchmark"].to_numpy()
        short = prepared.items["short"].to_numpy()
        counts = {}
        for name in dict.fromkeys(names.tolist()):
            mine = names == name
            here = mine[item]
            counts[name] = {
                "texts": int(mine.sum()),
                "too_short": int((mine & short).sum()),
                "found": len(np.unique(item[here])),
                "documents": len(np.unique(found["pos"].to_numpy()[here])),
            }
        return counts

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Drop, cut or list the documents of one part that have matches."""
        assert verdict is not None
        if not len(verdict):
            return Outcome(table, removed([]))
        matches = _by(verdict.to_pylist(), "pos")
        touched = pc.is_in(table["pos"], value_set=verdict["pos"].combine_chunks())
        kept: list[dict[str, Any]] = []
        gone: list[RemovedRow] = []
        shared: list[BenchmarkMatch] = []
        for row in table.filter(touched).to_pylist():
            left = self._left(row, matches[row["pos"]])
            lost = len(row["text"].encode()) - (len(left["text"].encode()) if left else 0)
            detail = self._detail(row["text"], matches[row["pos"]])
            place = matches[row["pos"]][0]["start"]
            gone.append(RemovedRow(row["pos"], REASON, lost, left is None, detail, place))
            kept += [left] if left else []
            shared += self._annotations(row, matches[row["pos"]], whole=left is None)
        changed = pa.Table.from_pylist(kept, schema=table.schema)
        whole = pa.concat_tables([table.filter(pc.invert(touched)), changed])
        listed = pa.Table.from_pylist([match.model_dump() for match in shared], schema=MATCHES)
        return Outcome(whole.sort_by("pos"), removed(gone), listed)

    def cuts(self) -> bool:
        """Whether the stage cuts text, instead of dropping or listing documents."""
        return self.settings.action == "cut"

    def _left(self, row: dict[str, Any], matches: list[dict[str, int]]) -> dict[str, Any] | None:
        """The document after the action of the settings; None if nothing is left of it."""
        if self.settings.action == "drop":
            return None
        if self.settings.action == "report":
            return row
        flags = _outside(row["text"], matches, self.settings.margin)
        text = cut_sentences(row["text"], list(chain(*flags)))
        if not text.strip():
            return None
        has_scores = any(row.get(name) is not None for name in SCORES)
        return {**row, "text": text, **(scores_left(row, text, flags) if has_scores else {})}

    def _annotations(
        self, row: dict[str, Any], matches: list[dict[str, int]], *, whole: bool
    ) -> Iterator[BenchmarkMatch]:
        """The annotation for each listed item that matches, in the order of the document's text."""
        index, items = self.prepared().index, self.prepared().items
        done = {"drop": "dropped", "cut": "cut", "report": "reported"}[self.settings.action]
        listed = [{**m, "item": int(index.text[m["gram"]])} for m in matches if m["listed"]]
        for number, found in _by(listed, "item").items():
            item = items.slice(number, 1).to_pylist()[0]
            shared = _shared(row["text"], row["lang"], found)
            yield BenchmarkMatch(
                file=row["origin_file"],
                row=row["origin_row"],
                source=row["source"],
                lang=row["lang"],
                benchmark=item["benchmark"],
                item=item["place"],
                how="text" if shared["words"] >= _words(item["text"]) else "ngram",
                **shared,
                benchmark_text=_around(item["text"], int(index.start[found[0]["gram"]])),
                done="dropped" if whole else done,
            )

    def _detail(self, text: str, matches: list[dict[str, int]]) -> str:
        """The detail of a document: its first match, both texts, the number of other items."""
        index, items = self.prepared().index, self.prepared().items
        first = matches[0]
        number = int(index.text[first["gram"]])
        more = len({int(index.text[match["gram"]]) for match in matches}) - 1
        item = items.slice(number, 1).to_pylist()[0]
        head = f"{item['benchmark']}/{item['place']}"[:80] + (f" +{more}" if more else "")
        room = (DETAIL - len(head) - 8) // 2
        start = int(index.start[first["gram"]])
        theirs = _excerpt(item["text"], start, room)
        return f"{head}: “{theirs}” | “{_excerpt(text, first['start'], room)}”"


def _items(settings: DecontaminateSettings) -> Iterator[Item]:
    """Every text of every benchmark, in the order of the recipe."""
    for benchmark in settings.benchmarks:
        yield from read_benchmark(benchmark)
    for task in settings.tasks:
        yield from read_task(task, settings.task_path)


@lru_cache(maxsize=1)
def _built(settings: DecontaminateSettings) -> BenchmarkIndex:
    items = list(_items(settings))
    sizes = Sizes(settings.ngram, settings.cjk_ngram, settings.min_words, settings.min_cjk)
    index, short = NgramIndex.of([item.text for item in items], sizes)
    table = pa.table(
        {
            "benchmark": pa.array([item.benchmark for item in items], pa.string()),
            "place": pa.array([item.place for item in items], pa.string()),
            "text": pa.array([item.text for item in items], pa.large_string()),
            "short": short,
        }
    )
    return BenchmarkIndex(index, table)


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> BenchmarkIndex:
    return BenchmarkIndex(
        NgramIndex.load(folder), pq.read_table(folder / "items.parquet", memory_map=True)
    )


def _chunks(texts: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of texts of about `_CHUNK` characters, each with the index of its first text."""
    first = size = 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _CHUNK:
            yield first, texts[first:number]
            first, size = number, 0
        size += len(text)
    if texts:
        yield first, texts[first:]


def _outside(text: str, matches: list[dict[str, int]], margin: int) -> list[list[bool]]:
    """Whether each sentence of each paragraph is farther than `margin` characters from all matches.

    Args:
        matches: with the characters `start` to `stop` of each.
    """
    near = np.zeros(len(text) + 1, np.int32)
    for match in matches:
        near[max(0, match["start"] - margin)] += 1
        near[min(len(text), match["stop"] + margin)] -= 1
    # how many characters near a match are before each place
    before = np.concatenate([[0], np.cumsum(np.cumsum(near[:-1]) > 0)])
    flags, at = [], 0
    for paragraph in divide(text):
        stays = []
        for sentence in paragraph.sentences:
            stays.append(bool(before[at] == before[at + len(sentence)]))
            at += len(sentence)
        flags.append(stays)
    return flags


def _by(matches: list[dict[str, int]], key: str) -> dict[int, list[dict[str, int]]]:
    """Group matches by one of their fields, in the order of first occurrence."""
    found: dict[int, list[dict[str, int]]] = {}
    for match in matches:
        found.setdefault(match[key], []).append(match)
    return found


def _words(text: str) -> int:
    """The number of words and CJK characters of a text."""
    return len(Units.of([text]).text)


def _shared(text: str, lang: str | None, matches: list[dict[str, int]]) -> dict[str, Any]:
    """The fields of `BenchmarkMatch` that show the first place of a document where it matches.

    Personal data in the text is masked.
    """
    start, stop = matches[0]["start"], matches[0]["stop"]
    for match in matches:
        # consecutive n-grams of one long match overlap
        stop = max(stop, match["stop"]) if match["start"] <= stop else stop
    place = start, min(stop, start + _SHARED)
    shown = excerpt(text, lang, place, _AROUND, _AROUND)
    words = _words(text[start:stop])
    return {"words": words, "text": shown.text, "shared": [shown.start, shown.stop]}


def _around(text: str, start: int) -> str:
    """A benchmark's text; of a long text, only the part around a place."""
    most = _SHARED + 2 * _AROUND
    begin = max(0, start - _AROUND) if len(text) > most else 0
    return excerpt(text, None, (begin, begin), 0, most).text


def _excerpt(text: str, start: int, room: int) -> str:
    """A text from a place on, with single spaces and masks: at most `room` characters."""
    shown = excerpt(text, None, (start, start), 0, 2 * room).text
    return beginning(" ".join(shown.split()), None, room)
