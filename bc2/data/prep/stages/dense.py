"""Near-duplicates by embedding: sign bits find candidate pairs, exact cosines verify them.

After Baichuan 2 (arXiv 2309.10305, section 2.1), whose clustering and deduplication uses
"LSH-like features and dense embedding features"; SemDeDup (Abbas et al. 2023, arXiv
2303.09540) also drops documents by cosine. It is a second pass after `near`, which does not find
documents with the same sentences in another order, or with one word in forty replaced: they share
too few shingles.

`keys` computes for each document a vector of 8-bit integers, and a bit for each of some random
hyperplanes: on which side of the hyperplane the vector is. Two vectors differ in a bit with
probability angle / pi (Charikar 2002, "Similarity estimation techniques from rounding
algorithms"). `settle` pairs documents that share a band of bits, computes the exact cosine of the
two vectors of each pair, and joins the pairs that reach the threshold into connected components.
One document of each component stays. A pair below the threshold is never joined directly, but two
documents of a component may be less similar if a chain of pairs connects them.

All computations are in integers, except one square root and one division for each pair, whose
rounding IEEE 754 defines. So parts, batches and threads do not change the result. Which document
stays is decided as in `near`, by the number of distinct words; so are the details of the others.

Memory of `settle`: 16 bytes for each document, and 28 more while one band is grouped; about 64
bytes for each of 2^22 candidate pairs at a time, 24 for each verified pair, and about 100 for each
document in such a pair. Temporary files: the vectors, D bytes for each document, from which the
vectors of each pair are read.

Shapes: N documents, D dimensions, P pairs.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.mixture import mix
from bc2.data.prep.part_files import read_part_file
from bc2.data.prep.settings import DenseSettings
from bc2.data.prep.stages.base import RECORD, Outcome, PrepStage, WorkingSet
from bc2.data.prep.stages.deduplication.connected_components import (
    PairSet,
    candidate_pairs,
    connected_components,
    drop_decided,
    equal_groups,
    keepers,
    survivor_detail,
)
from bc2.data.prep.text import minhash
from bc2.data.prep.text.embedding import (
    Int8,
    check_model,
    embed_spans,
    model_digests,
    project,
    quantise,
)
from bc2.data.prep.text.word_hashes import text_slices, words_of
from bc2.errors import RecipeError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

#: The most bits of a band, which is stored as one number of 32 bits.
WIDEST = 32

#: UTF-8 bytes of text that are embedded at a time.
SLICE_BYTES = 1 << 20

#: Pairs that a worker verifies in one call.
CHUNK = 1 << 16

#: Columns of the working set that `settle` needs of the documents in near-duplicate pairs.
_ORIGIN = ("pos", "origin_file", "origin_row")

#: Vectors that a worker multiplies at a time.
_AT_ONCE = 4096


class DenseStage(PrepStage):
    """Drops documents whose embedding is nearly that of another document.

    Raises:
        RecipeError: with `bits` bits, no number of bands reaches the recall at the threshold.
    """

    name: ClassVar[str] = "dense"
    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = ("dense_duplicate",)
    needs_all: ClassVar[bool] = True

    def __init__(self, settings: DenseSettings):
        self.settings = settings
        self.bands, self.rows = bit_bands_for(settings.threshold, settings.recall, settings.bits)

    def check(self) -> None:
        """Check that the embedding model can be used, if one is set.

        Raises:
            UsageError, DataError: it cannot.
        """
        check_model(self.settings.model, "corpus.dense.model")

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of each file of the model, if it is a folder."""
        return model_digests(self.settings.model)

    def keys(self, table: pa.Table) -> pa.Table:
        """pos, vector (D bytes), band_00, band_01 ... (uint32) of each document.

        Documents with fewer than `min_words` words, and those whose vector is zero, are left out.
        """
        vectors, kept = [], [np.zeros(0, bool)]
        for texts in text_slices(table["text"], SLICE_BYTES):
            words = words_of(texts)
            enough = _counts(words) >= self.settings.min_words
            found = self._vectors(texts.filter(enough), words.filter(enough))
            enough[enough] = found.any(axis=1)
            vectors.append(found[found.any(axis=1)])
            kept.append(enough)
        pos = table["pos"].to_numpy()[np.concatenate(kept)]
        return self._table(pos, np.concatenate(vectors) if vectors else np.zeros((0, 1), np.int8))

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Decide which documents stay, as the module's docstring explains.

        Returns:
            Numbers of: documents (that have a vector); buckets (groups of two or more documents
            with an equal band, over all bands); passed_over (pairs that were not tried, in buckets
            of more than 64); candidates (pairs that were tried, counted once for each band that
            they share); pairs (distinct pairs that reach the threshold); components; dropped
            (documents); chained (documents that are dropped although their cosine to the one that
            stays is below the threshold).
        """
        documents, order = _documents(work)
        vectors = _Vectors(work, documents)
        firsts, seconds, facts = self._near_pairs(work, order, vectors)
        wanted = np.union1d(firsts, seconds)
        first, second = (np.searchsorted(wanted, side) for side in (firsts, seconds))
        about = _about(work, documents[wanted])
        labels = connected_components(len(wanted), first, second)
        stays = keepers(labels, about["words"].to_numpy(), about["quality"].to_numpy())
        gone = np.flatnonzero(stays != np.arange(len(stays)))
        cosines = vectors.cosines(wanted[gone], wanted[stays[gone]])
        details = pa.array(_details(about.take(stays[gone]), cosines), pa.string())
        work.hand_out(pa.table({"pos": documents[wanted[gone]], "detail": details}))
        return facts | {
            "documents": len(documents),
            "pairs": len(firsts),
            "components": len(np.unique(stays[gone])),
            "dropped": len(gone),
            "chained": int(np.count_nonzero(cosines < self.settings.threshold)),
        }

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Drop the documents that the verdict of `settle` names."""
        assert verdict is not None, "the stage settles"
        return drop_decided(table, verdict, "dense_duplicate")

    def _vectors(self, texts: pa.Array, words: pa.Array) -> Int8:
        settings = self.settings
        if settings.model is not None:
            return quantise(embed_spans(settings.model, texts.to_pylist(), settings.span))
        return quantise(project(words, settings.dimensions, settings.seed))

    def _table(self, pos: Int64, vectors: Int8) -> pa.Table:
        """The table that `keys` returns."""
        planes = hyperplanes(vectors.shape[1], self.bands * self.rows, self.settings.seed)
        starts = range(0, max(len(vectors), 1), _AT_ONCE)
        values = np.concatenate(
            [bit_band_values(vectors[at : at + _AT_ONCE], planes, self.bands) for at in starts]
        )
        width = pa.binary(vectors.shape[1])
        stored = pa.Array.from_buffers(width, len(vectors), [None, pa.py_buffer(vectors.tobytes())])
        columns = {"pos": pos, "vector": stored}
        return pa.table(columns | {_band(i): values[:, i] for i in range(self.bands)})

    def _near_pairs(
        self, work: WorkingSet, order: Int64, vectors: _Vectors
    ) -> tuple[Int64, Int64, dict[str, int]]:
        """Pairs of documents, by index, that share a band and reach the threshold; and facts."""
        found = PairSet(len(order))
        buckets = passed = candidates = 0
        for band in map(_band, range(self.bands)):
            members, ends = equal_groups(_column(work, band)[order])
            buckets += len(ends) - 1
            for first, second, more in candidate_pairs(members, ends):
                near = vectors.cosines(first, second) >= self.settings.threshold
                found.add(first[near], second[near])
                passed, candidates = passed + more, candidates + len(first)
        facts = {"buckets": buckets, "passed_over": passed, "candidates": candidates}
        return *found.both(), facts


# -- bands ---------------------------------------------------------------------------------


def bit_chance(cosine: float) -> float:
    """The probability that two vectors are on one side of a random hyperplane: 1 - angle / pi."""
    return 1 - math.acos(min(max(cosine, -1.0), 1.0)) / math.pi


def bit_recall_at(cosine: float, bands: int, rows: int) -> float:
    """The probability that two vectors with a given cosine share a band of `rows` bits."""
    return minhash.recall_at(bit_chance(cosine), bands, rows)


def bit_bands_for(threshold: float, recall: float, bits: int) -> tuple[int, int]:
    """The number of bands, and of rows (bits) of a band: the most rows that reach `recall`.

    A band has at most 32 rows. With more rows, fewer candidates are below the threshold. Bits that
    do not fill a band are not computed.

    Raises:
        RecipeError: bands of one row do not reach the recall either.
    """
    for rows in range(min(bits, WIDEST), 0, -1):
        if bit_recall_at(threshold, bits // rows, rows) >= recall:
            return bits // rows, rows
    best = bit_recall_at(threshold, bits, 1)
    raise RecipeError(
        f"{bits} bits cannot find {recall:.1%} of the pairs at cosine {threshold}",
        where="corpus.dense.threshold",
        todo=minhash.recall_advice("bits", best),
    )


@lru_cache(maxsize=1)
def hyperplanes(dimensions: int, bits: int, seed: int) -> Float64:
    """Normal vectors of random hyperplanes [D, bits], whose components are integers.

    Each component is the sum of twelve uniform 16-bit numbers minus its mean, which is close to a
    normal distribution with standard deviation 2^16. Products with vectors of bytes are below
    2^53, so they are exact. A row does not depend on the number of rows.
    """
    places = np.arange(dimensions * bits * 3, dtype=np.uint64)
    numbers = mix(places ^ mix(np.uint64(seed) ^ np.uint64(_PLANES)))
    quarters = numbers.view(np.uint16).reshape(dimensions, bits, 12)
    normals: Float64 = quarters.sum(axis=2, dtype=np.int64).astype(np.float64) - 6 * 0xFFFF
    return normals


#: Makes the random numbers of hyperplanes differ from those of the projection.
_PLANES = 0x9E37


def bit_band_values(vectors: Int8, planes: Float64, bands: int) -> UInt32:
    """The sign bits of each band as one number [N, bands].

    Args:
        vectors: [N, D].
        planes: from `hyperplanes`, [D, bits].
    """
    signs = vectors.astype(np.float64) @ planes > 0
    cut = signs.reshape(len(vectors), bands, planes.shape[1] // bands)
    found = np.zeros((len(vectors), bands), np.uint32)
    for row in range(cut.shape[2]):
        found |= cut[:, :, row].astype(np.uint32) << np.uint32(row)
    return found


def cosines(first: Int8, second: Int8) -> Float64:
    """Cosines of pairs of vectors, none of them zero: [P, D], [P, D] -> [P].

    Products are exact, and the square root and the division are correctly rounded, so the result
    does not depend on the batch.
    """
    one, two = first.astype(np.int32), second.astype(np.int32)
    products = np.einsum("pd,pd->p", one, two)
    sizes = np.einsum("pd,pd->p", one, one).astype(np.float64)
    sizes *= np.einsum("pd,pd->p", two, two)
    found: Float64 = products / np.sqrt(sizes)
    return found


def _counts(words: pa.Array) -> Int64:
    """The number of words of each text [N], given as `words_of` returns it."""
    spaces = pc.add(pc.count_substring(words, " "), 1).to_numpy().astype(np.int64)
    return np.where(pc.equal(words, "").to_numpy(zero_copy_only=False), 0, spaces)


def _band(number: int) -> str:
    return f"band_{number:02d}"


# -- the whole corpus ----------------------------------------------------------------------


def _column(work: WorkingSet, name: str) -> Any:
    """A column of the keys of all parts, one part after the other."""
    tables = [pq.read_table(work.keys(part), columns=[name]) for part in work.parts]
    return np.concatenate([table[name].to_numpy() for table in tables] or [np.zeros(0, np.int64)])


def _documents(work: WorkingSet) -> tuple[Int64, Int64]:
    """`pos` of the documents that have a vector, sorted [N]; and the row of each in the keys."""
    found = _column(work, "pos")
    order = np.argsort(found)
    return found[order], order


class _Vectors:
    """A file of all vectors in the order of `pos`; documents are given by their index in it."""

    def __init__(self, work: WorkingSet, documents: Int64):
        self._work = work
        self._file = work.folder / "vectors"
        self._width = 0
        for name in work.parts:
            keys = pq.read_table(work.keys(name), columns=["pos", "vector"])
            if len(keys):
                self._write(np.searchsorted(documents, keys["pos"].to_numpy()), keys, documents)

    def _write(self, places: Int64, keys: pa.Table, documents: Int64) -> None:
        self._width = keys.schema.field("vector").type.byte_width
        mode: Any = "r+" if self._file.exists() else "w+"
        held = np.memmap(self._file, np.int8, mode, shape=(len(documents), self._width))
        flat = np.frombuffer(b"".join(keys["vector"].to_pylist()), np.int8)
        held[places] = flat.reshape(-1, self._width)
        held.flush()

    def cosines(self, firsts: Int64, seconds: Int64) -> Float64:
        """Cosines [P] of pairs of documents, given by index."""
        return np.concatenate([np.zeros(0), *self._work.map(_cosines, self._jobs(firsts, seconds))])

    def _jobs(self, firsts: Int64, seconds: Int64) -> Iterator[_Pairs]:
        for at in range(0, len(firsts), CHUNK):
            chunk = slice(at, at + CHUNK)
            yield _Pairs(self._file, self._width, firsts[chunk], seconds[chunk])


class _Pairs(NamedTuple):
    file: Path
    width: int
    one: Int64
    two: Int64


def _cosines(pairs: _Pairs) -> Float64:
    found = [np.zeros(0)]
    with io.FileIO(pairs.file) as file:
        for at in range(0, len(pairs.one), _AT_ONCE):
            both = np.stack((pairs.one, pairs.two))[:, at : at + _AT_ONCE]
            # Consecutive pairs are of one bucket and share documents, so each is read once.
            places, (one, two) = np.unique(both, return_inverse=True)
            vectors = _read(file, places, pairs.width)
            found.append(cosines(vectors[one], vectors[two]))
    return np.concatenate(found)


def _read(file: io.FileIO, places: Int64, width: int) -> Int8:
    """Read vectors [places, width].

    The file is not memory-mapped: mapped pages stay resident as long as the mapping.
    """
    found = np.empty((len(places), width), np.int8)
    for row, place in zip(found, places.tolist(), strict=True):
        os.preadv(file.fileno(), [row.data], place * width)
    return found


def _about(work: WorkingSet, wanted: Int64) -> pa.Table:
    """pos, origin_file, origin_row, quality and distinct words of some documents, by `pos`."""
    own = [RECORD.field(name) for name in _ORIGIN]
    schema = pa.schema([*own, ("quality", pa.float32()), ("words", pa.int64())])
    tables = [schema.empty_table()]
    for name in work.parts:
        table = read_part_file(work.part(name), [*_ORIGIN, "quality", "text"])
        table = table.filter(pc.is_in(table["pos"], value_set=pa.array(wanted)))
        if "quality" not in table.schema.names:
            table = table.append_column("quality", pa.nulls(len(table), pa.float32()))
        table = table.append_column("words", pa.array(_distinct(table["text"]), pa.int64()))
        tables.append(table.select(schema.names).cast(schema))
    return pa.concat_tables(tables).sort_by("pos")


def _distinct(texts: pa.ChunkedArray) -> list[int]:
    found = (words_of(some).to_pylist() for some in text_slices(texts, SLICE_BYTES))
    return [len(set(words.split(" "))) for some in found for words in some]


def _details(about: pa.Table, cosines: Float64) -> list[str]:
    rows = about.select(["origin_file", "origin_row"]).to_pylist()
    return [
        survivor_detail(row["origin_file"], row["origin_row"], f"cosine {cosine:.3f}")
        for row, cosine in zip(rows, cosines.tolist(), strict=True)
    ]
