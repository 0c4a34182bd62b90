"""Decide which repeated passages are cut, and which documents are dropped for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bc2.data.prep.group_by import Int64, among, column
from bc2.data.prep.settings import PassagesSettings

PARAGRAPH, SENTENCE, DOCUMENT = 0, 1, 2

Ints = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]

#: A row for each passage that is cut, for the first copy of each of them, and for each document
#: that is dropped: then the kind is DOCUMENT, and the index the share of its characters that occur
#: earlier, in thousandths.
DECIDED = pa.schema(
    [
        pa.field("pos", pa.int64()),
        pa.field("kind", pa.int8()),
        pa.field("index", pa.int32()),  # among the document's paragraphs or sentences
        pa.field("held", pa.bool_()),  # the first copy, which stays
        pa.field("hash", pa.int64()),  # 0 for a document
        pa.field("inside", pa.int32()),  # index of the paragraph that it is, or is in
        pa.field("bytes", pa.int32()),
    ]
)


class RepeatedPassages(NamedTuple):
    """Repeated passages [n] sorted by (hash, pos, index), and their documents [d]."""

    hash: Int64  # [n] of the kind and the form: equal for equal passages
    document: Ints  # [n] index of the document
    kind: Ints  # [n]
    place: Ints  # [n] index among the document's paragraphs or sentences
    inside: Ints  # [n] index of the paragraph that it is, or is in
    characters: Ints  # [n]
    bytes: Ints  # [n]
    pos: Ints  # [d]
    all_characters: Ints  # [d]
    all_bytes: Ints  # [d]

    @classmethod
    def of(cls, files: Sequence[Path]) -> RepeatedPassages:
        """Read Parquet files of `repeated_passages.PASSAGES`."""
        hashes = column(files, "hash")
        order = np.lexsort((column(files, "index"), column(files, "pos"), hashes))
        all_pos = column(files, "pos")[order]
        pos = np.unique(all_pos)
        document = np.searchsorted(pos, all_pos).astype(np.int32)
        del all_pos

        def by_document(name: str) -> Ints:
            found = np.zeros(len(pos), np.int64)
            found[document] = column(files, name)[order]
            return found

        return cls(
            hashes[order],
            document,
            column(files, "kind")[order],
            column(files, "index")[order],
            column(files, "inside")[order],
            column(files, "characters")[order],
            column(files, "bytes")[order],
            pos,
            by_document("all_characters"),
            by_document("all_bytes"),
        )

    def firsts_and_copies(self, alive: Mask) -> tuple[Mask, Mask]:
        """[n], [n] which passages in documents that stay are the first of their hash, which not.

        Args:
            alive: [d] which documents stay.
        """
        living = np.flatnonzero(alive[self.document])
        first = np.ones(len(living), bool)
        first[1:] = np.diff(self.hash[living]) != 0
        firsts, copies = np.zeros((2, len(self.hash)), bool)
        firsts[living[first]] = True
        copies[living[~first]] = True
        return firsts, copies

    def lost(self, copies: Mask) -> tuple[Ints, Ints]:
        """The characters and the bytes that each document loses: [d], [d].

        Sentences of a paragraph that is cut do not count again.

        Args:
            copies: [n] which passages are cut.
        """
        paragraphs = copies & (self.kind == PARAGRAPH)
        paragraph = self.document.astype(np.int64) << 32 | self.inside
        inside = among(paragraph, np.unique(paragraph[paragraphs]))
        counted = paragraphs | (copies & (self.kind == SENTENCE) & ~inside)
        at, sizes = self.document[counted], (self.characters[counted], self.bytes[counted])
        characters, lost_bytes = (np.zeros(len(self.pos), np.int64) for _ in sizes)
        np.add.at(characters, at, sizes[0])
        np.add.at(lost_bytes, at, sizes[1])
        return characters, lost_bytes


def decide(passages: RepeatedPassages, settings: PassagesSettings) -> pa.Table:
    """What is cut, what of it is held and where, and what is dropped: DECIDED, sorted."""
    everyone = np.ones(len(passages.pos), bool)
    characters, lost_bytes = passages.lost(passages.firsts_and_copies(everyone)[1])
    drop = characters > settings.max_lost * passages.all_characters
    drop |= (lost_bytes > 0) & (passages.all_bytes - lost_bytes < settings.min_left)
    first, cut = passages.firsts_and_copies(~drop)
    held = first & among(passages.hash, passages.hash[cut])  # which are sorted
    shares = characters[drop] * 1000 // np.maximum(passages.all_characters[drop], 1)
    return pa.concat_tables(
        [
            _rows(passages, cut, held=False),
            _rows(passages, held, held=True),
            _documents(passages.pos[drop], shares),
        ]
    ).sort_by([(name, "ascending") for name in ("pos", "kind", "index", "held")])


def _rows(passages: RepeatedPassages, which: Mask, *, held: bool) -> pa.Table:
    """DECIDED for the passages of a mask [n]."""
    columns: dict[str, Any] = {
        "pos": passages.pos[passages.document[which]],
        "kind": passages.kind[which],
        "index": passages.place[which],
        "held": np.full(int(which.sum()), held),
        "hash": passages.hash[which],
        "inside": passages.inside[which],
        "bytes": passages.bytes[which],
    }
    return pa.table(columns).cast(DECIDED)


def _documents(pos: Ints, shares: Ints) -> pa.Table:
    """DECIDED for documents that are dropped."""
    none = np.zeros(len(pos), np.int32)
    columns = [pos, none + DOCUMENT, shares, none > 0, none, none, none]
    return pa.table([pa.array(each) for each in columns], names=DECIDED.names).cast(DECIDED)
