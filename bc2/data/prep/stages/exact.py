"""Exact duplicates: keep the first of all documents with the same text (Baichuan 2, figure 2)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bc2.data.prep.stages.base import Outcome, PrepStage, WorkingSet, dropped, remaining

if TYPE_CHECKING:
    from bc2.data.corpus_config import CorpusConfig


class ExactStage(PrepStage):
    """Keeps the first of equal texts, by `pos`: by the order of sources, file name and row.

    Texts are equal if the first 128 bits of their SHA-256 are. Memory of `settle`: 24 bytes for
    each document, and 40 more for each that has copies.

    Args:
        as_read: no earlier stage changes the text, so the document's id is its hash.
    """

    name: ClassVar[str] = "exact"
    version: ClassVar[int] = 1
    reasons: ClassVar[tuple[str, ...]] = ("duplicate",)
    needs_all: ClassVar[bool] = True

    def __init__(self, as_read: bool = False):
        self.as_read = as_read

    @classmethod
    def of(cls, config: CorpusConfig) -> Self:
        return cls(as_read=config.normalise is None)

    def keys(self, table: pa.Table) -> pa.Table:
        if self.as_read:
            digests = bytes.fromhex("".join(table["id"].to_pylist()))
        else:
            texts = table["text"].cast(pa.large_binary()).to_pylist()
            digests = b"".join(hashlib.sha256(text).digest()[:16] for text in texts)
        halves = np.frombuffer(digests, dtype=np.int64).reshape(-1, 2)
        return pa.table({"pos": table["pos"], "high": halves[:, 0], "low": halves[:, 1]})

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        later = work.groups("high", "low").later()
        work.hand_out(pa.table({"pos": later}))
        return {"duplicates": len(later)}

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        assert verdict is not None
        gone = pc.is_in(table["pos"], value_set=verdict["pos"].combine_chunks())
        return Outcome(remaining(table, gone), dropped(table, gone, "duplicate"))
