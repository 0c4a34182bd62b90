"""Near-duplicates: MinHash finds candidate pairs, exact sets of shingles verify them.

After Baichuan 2 (arXiv 2309.10305, section 2.1). `keys` computes the bands of each document.
`settle` pairs documents that share a band, computes the Jaccard similarity of each candidate pair,
and joins the pairs that reach the threshold into connected components. One document of each
component stays. A pair below the threshold is never joined directly, but two documents of a
component may be less similar if a chain of pairs connects them.

The document that stays is the one with the most shingles, of equals the first by `pos`: a mail
that quotes a shorter one stays, and the shorter one stands in it. If an earlier stage computed
`quality`, documents whose quality is 0.1 or more below the best of the component do not stay. The
detail of a dropped document names the document that stays and their similarity, which may be below
the threshold in a chain.

Memory of `settle`: 8 bytes for each document, and 24 more while one band is grouped; 16 bytes for
each distinct candidate pair, 64 more for each of 2^22 pairs at a time, and about 50 for each
verified pair; about 100 bytes for each document in such a pair. Temporary files: 8 bytes for each
word of the documents in candidate pairs.
"""

from __future__ import annotations

import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.prep.group_by import Groups
from bc2.data.prep.part_files import pos_range, read_part_file
from bc2.data.prep.settings import NearSettings
from bc2.data.prep.stages.base import Outcome, PrepStage, WorkingSet
from bc2.data.prep.stages.deduplication.connected_components import (
    PairSet,
    candidate_pairs,
    connected_components,
    drop_decided,
    keepers,
    survivor_detail,
)
from bc2.data.prep.text import minhash
from bc2.data.prep.text.word_hashes import text_slices

Int64 = npt.NDArray[np.int64]

#: Pairs that a worker verifies in one call.
CHUNK = 16_384

#: The most files with sets of shingles that a worker holds open.
_OPEN = 256


class NearStage(PrepStage):
    """Drops documents that are near-duplicates of another document.

    Raises:
        RecipeError: with `hashes` hashes, no number of bands reaches the recall at the threshold.
    """

    name: ClassVar[str] = "near"
    version: ClassVar[int] = 3
    reasons: ClassVar[tuple[str, ...]] = ("near_duplicate",)
    needs_all: ClassVar[bool] = True

    def __init__(self, settings: NearSettings):
        self.settings = settings
        self.bands, self.rows = minhash.bands_for(
            settings.threshold, settings.recall, settings.hashes
        )

    def keys(self, table: pa.Table) -> pa.Table:
        """pos, signature, band_00, band_01 ... (int64) of each document that has words.

        Equal signatures mean that all bands are equal.
        """
        bands, has_words = [np.zeros((0, self.bands), np.int64)], [np.zeros(0, bool)]
        for texts in text_slices(table["text"]):
            found = minhash.signatures(texts, self.bands * self.rows, self.settings.shingle)
            bands.append(minhash.band_values(found, self.bands, self.rows))
            has_words.append(minhash.has_words(found))
        kept = np.concatenate(has_words)
        values = np.concatenate(bands)[kept]
        columns = {"pos": table["pos"].to_numpy()[kept], "signature": minhash.fold(values)}
        return pa.table(columns | {_band(i): values[:, i] for i in range(self.bands)})

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Decide which documents stay, as the module's docstring explains.

        Returns:
            Numbers of: documents (that have words); identical (documents with the signature of an
            earlier one); buckets (groups of two or more documents with an equal band, over all
            bands); passed_over (pairs that were not tried, in buckets of more than 64); candidates
            (distinct pairs that were tried); pairs (those that are near-duplicates); components;
            dropped (documents); chained (documents that are dropped although their similarity to
            the one that stays is below the threshold).
        """
        firsts, seconds, facts = self._candidates(work)
        sets = _Sets(work, np.union1d(firsts, seconds), self.settings.shingle)
        first, second = (np.searchsorted(sets.wanted, side) for side in (firsts, seconds))
        near = self._near(sets.overlaps(first, second))
        first, second = first[near], second[near]
        labels = connected_components(len(sets.wanted), first, second)
        stays = keepers(labels, sets.sizes(), sets.quality())
        gone = np.flatnonzero(stays != np.arange(len(stays)))
        overlaps = sets.overlaps(gone, stays[gone])
        details = pa.array(sets.details(stays[gone], overlaps), pa.string())
        work.hand_out(pa.table({"pos": sets.wanted[gone], "detail": details}))
        return facts | {
            "pairs": len(first),
            "components": len(np.unique(stays[gone])),
            "dropped": len(gone),
            "chained": int(np.count_nonzero(~self._near(overlaps))),
        }

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Drop the documents that the verdict of `settle` names."""
        assert verdict is not None
        return drop_decided(table, verdict, "near_duplicate")

    def _near(self, overlaps: Int64) -> npt.NDArray[np.bool_]:
        near: npt.NDArray[np.bool_] = overlaps[:, 0] / overlaps[:, 1] >= self.settings.threshold
        return near

    def _candidates(self, work: WorkingSet) -> tuple[Int64, Int64, dict[str, int]]:
        """Pairs of `pos` with a band in common, or with equal signatures."""
        paths = [work.keys(name) for name in work.parts]
        columns = [pq.read_table(path, columns=["pos"])["pos"].to_numpy() for path in paths]
        documents = np.sort(np.concatenate([np.zeros(0, np.int64), *columns]))
        found = PairSet(len(documents))
        alike = work.groups("signature")
        copies = alike.later()
        found.add(*(np.searchsorted(documents, side) for side in _linked(alike)))
        buckets = passed = 0
        for band in map(_band, range(self.bands)):
            # Documents with equal signatures share all bands, so the first of them is enough.
            alike = work.groups(band, without=copies)
            members = np.searchsorted(documents, alike.members)
            buckets += len(alike.sizes)
            for first, second, more in candidate_pairs(members, alike.ends):
                found.add(first, second)
                passed += more
        first, second = found.both()
        facts = {"documents": len(documents), "identical": len(copies), "buckets": buckets}
        facts |= {"passed_over": passed, "candidates": len(found)}
        return documents[first], documents[second], facts


def _band(number: int) -> str:
    return f"band_{number:02d}"


def _linked(alike: Groups) -> tuple[Int64, Int64]:
    """Pairs of `pos`: the first document of each group with every other of the group."""
    firsts = alike.firsts()
    others = firsts != alike.members
    return firsts[others], alike.members[others]


# -- verification --------------------------------------------------------------------------


class _Sets:
    """The sets of shingles of the documents in candidate pairs, in a file for each part.

    A document's rank is its index among these documents in the order of `pos`.

    Args:
        wanted: `pos` of the documents, sorted.
        shingle: words in a shingle.
    """

    def __init__(self, work: WorkingSet, wanted: Int64, shingle: int):
        ranges = {name: pos_range(work.part(name)) for name in work.parts}
        begins = sorted((ends, name) for name, ends in ranges.items() if ends)
        cuts = [np.searchsorted(wanted, (first, last + 1)) for (first, last), _ in begins]
        parts = [
            (work.part(name), str(work.folder / name), cut)
            for (_, name), cut in zip(begins, cuts, strict=True)
            if cut[0] < cut[1]
        ]
        self.wanted = wanted
        self._work = work
        self._stems = [stem for _, stem, _ in parts]
        self._first = np.array([cut[0] for *_, cut in parts] + [len(wanted)])
        jobs = (_Job(path, stem, wanted[slice(*cut)], shingle) for path, stem, cut in parts)
        for _ in work.map(_write_sets, jobs):
            pass

    def overlaps(self, firsts: Int64, seconds: Int64) -> Int64:
        """Sizes of the intersection and the union of pairs of sets, given by rank: [pairs, 2]."""
        chunks = (
            _Pairs(self._stems, self._first, firsts[i : i + CHUNK], seconds[i : i + CHUNK])
            for i in range(0, len(firsts), CHUNK)
        )
        return np.concatenate([np.zeros((0, 2), np.int64), *self._work.map(_overlaps, chunks)])

    def sizes(self) -> Int64:
        """The number of shingles of each document."""
        found = [np.diff(np.load(f"{stem}.npy")) for stem in self._stems]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def quality(self) -> npt.NDArray[np.float32] | None:
        """The quality of each document, NaN if it has none; None if no document has one."""
        tables = [pq.read_table(_about(stem), columns=["quality"]) for stem in self._stems]
        values = [table["quality"].to_numpy().astype(np.float32) for table in tables]
        found: npt.NDArray[np.float32] = np.concatenate([np.zeros(0, np.float32), *values])
        return None if np.isnan(found).all() else found

    def details(self, ranks: Int64, overlaps: Int64) -> list[str]:
        """The detail of each dropped document: the document that stays, and their similarity."""
        origins: dict[int, tuple[str, int]] = {}
        stays = np.unique(ranks)
        part = np.searchsorted(self._first, stays, "right") - 1
        for number in np.unique(part).tolist():
            mine = stays[part == number]
            about = pq.read_table(
                _about(self._stems[number]), columns=["origin_file", "origin_row"]
            )
            rows = about.take(mine - self._first[number]).to_pydict()
            found = zip(rows["origin_file"], rows["origin_row"], strict=True)
            origins |= dict(zip(mine.tolist(), found, strict=True))
        return [
            survivor_detail(*origins[rank], f"jaccard {shared / united:.2f}")
            for rank, (shared, united) in zip(ranks.tolist(), overlaps.tolist(), strict=True)
        ]


class _Job(NamedTuple):
    part: Path
    stem: str
    wanted: Int64
    shingle: int


class _Pairs(NamedTuple):
    stems: list[str]
    first: Int64
    one: Int64
    two: Int64


def _about(stem: str) -> str:
    return f"{stem}.parquet"


def _write_sets(job: _Job) -> None:
    """Write three files for the wanted documents of a part.

    They hold the sets of shingles, the ends of the sets, and the columns `quality`, `origin_file`
    and `origin_row`.
    """
    names = ["quality", "origin_file", "origin_row", "text"]
    table = read_part_file(job.part, ["pos", *names])
    table = table.filter(pc.is_in(table["pos"], value_set=pa.array(job.wanted)))
    if "quality" not in table.schema.names:
        table = table.append_column("quality", pa.nulls(len(table), pa.float32()))
    pq.write_table(table.select(names[:3]), _about(job.stem))
    ends = [np.zeros(1, np.int64)]
    with open(f"{job.stem}.sets", "wb") as stream:
        for texts in text_slices(table["text"]):
            values, more = minhash.shingle_sets(texts, job.shingle)
            values.tofile(stream)
            ends.append(ends[-1][-1] + more[1:])
    np.save(f"{job.stem}.npy", np.concatenate(ends))


def _overlaps(pairs: _Pairs) -> Int64:
    """Sizes of the intersection and the union of pairs of sets: [pairs, 2]."""

    # The file is read, not memory-mapped: mapped pages stay resident as long as the mapping.
    @lru_cache(maxsize=_OPEN)
    def part(number: int) -> tuple[io.FileIO, Int64]:
        return io.FileIO(f"{pairs.stems[number]}.sets"), np.load(f"{pairs.stems[number]}.npy")

    def of(rank: int, number: int) -> npt.NDArray[np.uint64]:
        file, ends = part(number)
        first, last = ends[rank - pairs.first[number] :][:2].tolist()
        found = os.pread(file.fileno(), 8 * (last - first), 8 * first)
        return np.frombuffer(found, np.uint64)

    both = np.stack((pairs.one, pairs.two), axis=1)
    parts = np.searchsorted(pairs.first, both, "right") - 1
    found = [
        minhash.overlap(of(one, one_part), of(two, two_part))
        for (one, two), (one_part, two_part) in zip(both.tolist(), parts.tolist(), strict=True)
    ]
    return np.array(found, np.int64).reshape(-1, 2)
