"""Topic clusters: documents about the same subject.

After Baichuan 2, section 2.1 (arXiv 2309.10305), which clusters documents before it scores and
samples them. Here a sample is fitted: latent semantic analysis (Deerwester et al. 1990) of words
and pairs of CJK characters, then k-means on the unit sphere (Dhillon and Modha 2001). All steps
from terms to cluster centres are linear, so the fitted clusters are one matrix [terms, clusters],
rounded to integers. A document belongs to the cluster with the largest sum over its terms. Sums of
integers are exact, so they are the same in every part and process.

Fitting runs once, on one thread, on the sample in the order of `pos`.

Shapes: N documents, T terms (or dimensions of an embedding model), K clusters.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import lru_cache
from itertools import chain, repeat
from operator import add
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.mixture import mix
from bc2.data.prep.part_files import pos_range, read_part_file
from bc2.data.prep.settings import ClustersSettings
from bc2.data.prep.stages.base import Outcome, PrepStage, WorkingSet, removed
from bc2.data.prep.text.embedding import check_model, embed, model_digests
from bc2.errors import DataError

Int64 = npt.NDArray[np.int64]

#: The table that `keys` returns. Documents of the lowest ranks are the sample.
_KEYS = pa.schema([("pos", pa.int64()), ("rank", pa.uint64())])

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

#: Runs of CJK characters, and words of letters: an underscore separates words of names in code.
_RUN = re.compile(f"[{_CJK}]+")
_WORD = re.compile(f"[^\\W\\d_{_CJK}]{{2,}}")

#: Number of spans in the excerpt of a long document.
_SPANS = 8

#: Number of terms that describe a cluster.
_NAMES = 10

#: Bits to which the matrix is rounded, so that sums over a document's terms fit in 64 bits.
_BITS = 20

#: The weight of a count is this times (1 + ln(count)), rounded.
_COUNT_SCALE = 64


class ClustersStage(PrepStage):
    """Adds the column `cluster` (int32). Cluster 0 is the largest in the sample.

    A document without any known term belongs to cluster 0. Memory of `settle`: 16 bytes for each
    document of one part; and the excerpts of the sample with their counts of terms, about 0.7 GB
    for 20,000 documents of 2,000 characters.
    """

    name: ClassVar[str] = "clusters"
    version: ClassVar[int] = 1
    reasons: ClassVar[tuple[str, ...]] = ()
    needs_all: ClassVar[bool] = True

    def __init__(self, settings: ClustersSettings):
        self.settings = settings

    def check(self) -> None:
        """Check that the embedding model can be used, if one is set.

        Raises:
            UsageError, DataError: it cannot.
        """
        check_model(self.settings.model, "corpus.clusters.model")

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of each file of the model, if it is a folder."""
        return model_digests(self.settings.model)

    def keys(self, table: pa.Table) -> pa.Table:
        """`pos`, and the rank of each document in a random order that the seed fixes."""
        high = np.array([int(name[:16], 16) for name in table["id"].to_pylist()], np.uint64)
        ranks = mix(high ^ mix(np.uint64(self.settings.seed))) if len(high) else high
        return pa.table([table["pos"], pa.array(ranks)], schema=_KEYS)

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Fit the clusters on a sample, then find the cluster of every document.

        Returns:
            ``{"sample": documents, "clusters": [{cluster, documents, bytes, terms}]}``. The terms
            of a cluster are those that distinguish its documents in the sample most from others.
        """
        chosen = _sample(work, self.settings.sample)
        spans = [(work.part(name), _within(chosen, work.part(name))) for name in work.parts]
        items = [(path, mine, self.settings.characters) for path, mine in spans if len(mine)]
        found = sorted(chain.from_iterable(work.map(_excerpts, items)))
        fitted = fit([text for _, text in found], self.settings)
        stamp = fitted.save(work.folder)
        tasks = [(work.part(name), work.folder, stamp, self.settings) for name in work.parts]
        totals = np.zeros((fitted.matrix.shape[1], 2), np.int64)
        for name, (decided, counts) in zip(work.parts, work.map(_assign, tasks), strict=True):
            pq.write_table(decided, work.verdict(name))
            totals += counts
        clusters = [
            {"cluster": number, "documents": int(documents), "bytes": int(size), "terms": terms}
            for number, ((documents, size), terms) in enumerate(
                zip(totals, fitted.names, strict=True)
            )
        ]
        return {"sample": len(found), "clusters": clusters}

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Append the cluster of each document, which `settle` found."""
        assert verdict is not None, "the stage settles"
        if not verdict["pos"].equals(table["pos"]):
            raise DataError("the clusters belong to other documents than the part holds")
        return Outcome(table.append_column("cluster", verdict["cluster"]), removed(()))


def terms(text: str) -> list[str]:
    """Words of two letters or more in lower case, then pairs of neighbouring CJK characters.

    A CJK character that stands alone is a term of its own.
    """
    lower = text.lower()
    found: list[str] = _WORD.findall(lower)
    for run in _RUN.findall(lower):
        found.extend(map(add, run, run[1:]) if len(run) > 1 else run)
    return found


def excerpt(text: str, characters: int) -> str:
    """At most so many characters of a text, in spans spread evenly over it."""
    if len(text) <= characters:
        return text
    length = characters // _SPANS
    starts = [(len(text) - length) * span // (_SPANS - 1) for span in range(_SPANS)]
    return "\n".join(text[start : start + length] for start in starts)


# -- the sample ----------------------------------------------------------------------------


def _sample(work: WorkingSet, count: int) -> Int64:
    """`pos` of the `count` documents of the lowest ranks, sorted.

    Memory: `count` rows, and the rows of one part.
    """
    kept = _KEYS.empty_table()
    for name in work.parts:
        kept = pa.concat_tables([kept, pq.read_table(work.keys(name), schema=_KEYS)])
        if len(kept) > count:
            order = np.lexsort((kept["pos"].to_numpy(), kept["rank"].to_numpy()))
            kept = kept.take(np.sort(order[:count]))
    found: Int64 = np.sort(kept["pos"].to_numpy())
    return found


def _within(chosen: Int64, part: Path) -> Int64:
    """Those of the sorted `pos` in `chosen` that are in a part."""
    ends = pos_range(part)
    if ends is None:
        return chosen[:0]
    first, last = np.searchsorted(chosen, [ends[0], ends[1] + 1])
    return chosen[first:last]


def _excerpts(item: tuple[Path, Int64, int]) -> list[tuple[int, str]]:
    """`pos` and excerpt of the chosen documents of a part."""
    path, chosen, characters = item
    table = read_part_file(path, ["pos", "text"])
    table = table.filter(pc.is_in(table["pos"], value_set=pa.array(chosen)))
    texts = (excerpt(text.as_py(), characters) for text in table["text"])
    return list(zip(table["pos"].to_pylist(), texts, strict=True))


# -- the clusters --------------------------------------------------------------------------


class Clustering(NamedTuple):
    """Fitted clusters."""

    terms: list[str]
    """[T] the terms that are counted; empty if an embedding model gives the features."""
    matrix: Int64
    """[T, K]: a document's cluster is the column where features @ matrix is largest."""
    names: list[list[str]]
    """[K] the terms that describe each cluster, the most distinctive first."""

    def assign(self, texts: Sequence[str], settings: ClustersSettings) -> Int64:
        """The cluster of each excerpt [N]; of equal sums the lowest number."""
        if not texts:
            return np.zeros(0, np.int64)
        if settings.model is not None:
            features: Any = embed(settings.model, texts)
        else:
            features = _counts(texts, self.terms)
        return _largest(features @ self.matrix)

    def save(self, folder: Path) -> int:
        """Write the clusters to a folder, for other processes; returns a checksum."""
        np.save(folder / "matrix.npy", self.matrix)
        (folder / "terms.json").write_text(json.dumps([self.terms, self.names]), "utf-8")
        return zlib.crc32(self.matrix.tobytes())

    @classmethod
    def load(cls, folder: Path) -> Clustering:
        """Read what `save` wrote."""
        known, names = json.loads((folder / "terms.json").read_text("utf-8"))
        return cls(known, np.load(folder / "matrix.npy"), names)


def fit(texts: Sequence[str], settings: ClustersSettings) -> Clustering:
    """Fit clusters to the excerpts of a sample; the largest cluster has number 0."""
    from threadpoolctl import threadpool_limits

    # One thread: the order in which threads add numbers would change the last bits.
    with threadpool_limits(1):
        known, counts = _vocabulary(texts, settings.vocabulary)
        if settings.model is None:
            matrix = _term_matrix(counts, settings)
        else:
            matrix = _model_matrix(embed(settings.model, texts), settings)
    if settings.model is None:
        fitted = Clustering(known, matrix, [])
        return _numbered(fitted, _largest(counts @ matrix), known, counts)
    fitted = Clustering([], matrix, [])
    return _numbered(fitted, fitted.assign(texts, settings), known, counts)


def _vocabulary(texts: Sequence[str], most: int) -> tuple[list[str], Any]:
    """The terms to count, sorted, and their weighted counts [N, T].

    Terms in one document only, and terms in more than half of all documents, are left out. Of the
    others those in the most documents are taken, at most `most`.
    """
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    counts = _table(texts, lambda words: map(numbers.__getitem__, words), numbers)
    documents = np.bincount(counts.indices, minlength=len(numbers))
    useful = (documents >= 2) & (2 * documents <= len(texts))
    allowed = useful if useful.any() else documents > 0
    ordered = sorted((-int(documents[n]), term) for term, n in numbers.items() if allowed[n])
    known = sorted(term for _, term in ordered[:most])
    return known, _weighted(counts[:, [numbers[term] for term in known]])


def _counts(texts: Sequence[str], known: list[str]) -> Any:
    """Weighted counts [N, T] of known terms, sparse int64."""
    numbers = {term: number for number, term in enumerate(known)}
    return _weighted(_table(texts, lambda words: map(numbers.get, words, repeat(-1)), numbers))


def _table(
    texts: Sequence[str], look_up: Callable[[list[str]], Iterable[int]], numbers: Sized
) -> Any:
    """Counts [N, T] of the terms of texts.

    Args:
        look_up: terms -> the column of each; a term with a negative column is left out.
        numbers: has the length T after all terms are looked up.
    """
    from scipy.sparse import csr_array

    # scikit-learn's CountVectorizer does the same, but takes about twice the time.
    rows = [np.fromiter(look_up(terms(text)), np.int32) for text in texts]
    rows = [row[row >= 0] for row in rows]
    ends = np.cumsum([0, *map(len, rows)])
    ids = np.concatenate([np.zeros(0, np.int32), *rows])
    counts = csr_array((np.ones(len(ids), np.int64), ids, ends), (len(texts), len(numbers)))
    counts.sum_duplicates()
    return counts


def _weighted(counts: Any) -> Any:
    """1 + ln(count), in integers (sublinear term frequency, Manning et al. 2008, 6.4.1)."""
    highest = int(counts.data.max(initial=1))
    table = [0, *(round(_COUNT_SCALE * (1 + math.log(n))) for n in range(1, highest + 1))]
    counts.data = np.array(table, np.int64)[counts.data]
    return counts


def _term_matrix(counts: Any, settings: ClustersSettings) -> Int64:
    """[T, K]: inverse document frequency, decomposition and cluster centres in one matrix."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    dimensions = min(settings.dimensions, counts.shape[0] - 1, counts.shape[1] - 1)
    if dimensions < 1:
        return np.zeros((counts.shape[1], 1), np.int64)
    documents = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log((1 + counts.shape[0]) / (1 + documents)) + 1
    features = normalize(counts.multiply(idf[None, :]).tocsr())
    reduced = TruncatedSVD(dimensions, n_iter=7, random_state=settings.seed)
    centres = _centres(reduced.fit_transform(features), settings)
    return _rounded(idf[:, None] * (reduced.components_.T @ centres.T))


def _model_matrix(embeddings: Int64, settings: ClustersSettings) -> Int64:
    if not len(embeddings):
        return np.zeros((embeddings.shape[1], 1), np.int64)
    return _rounded(_centres(embeddings.astype(np.float64), settings).T)


def _centres(points: npt.NDArray[np.float64], settings: ClustersSettings) -> Any:
    """The centres of the clusters as unit vectors [K, dimensions]."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    points = normalize(points[np.linalg.norm(points, axis=1) > 0])
    count = min(settings.clusters, len(np.unique(points, axis=0)))
    if count < 2:
        return normalize(points.sum(axis=0, keepdims=True))
    means = KMeans(count, n_init=4, random_state=settings.seed).fit(points).cluster_centers_
    return normalize(means)


def _rounded(matrix: npt.NDArray[np.float64]) -> Int64:
    highest = float(np.abs(matrix).max(initial=0)) or 1.0
    rounded: Int64 = np.rint(matrix * (2**_BITS / highest)).astype(np.int64)
    return rounded


def _numbered(fitted: Clustering, labels: Int64, known: list[str], counts: Any) -> Clustering:
    """The clusters that have documents, the largest first, with the terms that describe them."""
    sizes = np.bincount(labels, minlength=fitted.matrix.shape[1])
    order = np.argsort(-sizes, kind="stable")[: max(1, np.count_nonzero(sizes))]
    whole = np.asarray(counts.sum(axis=0)).ravel()
    documents = np.asarray((counts > 0).sum(axis=0)).ravel()
    rarity = np.rint(_COUNT_SCALE * np.log((1 + len(labels)) / (1 + documents))).astype(np.int64)
    names = []
    for number in order:
        mine = np.flatnonzero(labels == number)
        inside = np.asarray(counts[mine].sum(axis=0)).ravel()
        above = (inside * len(labels) - whole * len(mine)) * rarity
        best = np.argsort(-above, kind="stable")[:_NAMES]
        names.append([known[term] for term in best if above[term] > 0])
    return Clustering(fitted.terms, np.ascontiguousarray(fitted.matrix[:, order]), names)


def _largest(sums: Any) -> Int64:
    labels: Int64 = np.argmax(np.asarray(sums), axis=1).astype(np.int64)
    return labels


# -- every document ------------------------------------------------------------------------

#: Documents whose terms are counted at a time.
_AT_ONCE = 512


def _assign(task: tuple[Path, Path, int, ClustersSettings]) -> tuple[pa.Table, Int64]:
    """Find the cluster of each document of a part.

    Returns:
        A table of `pos` and `cluster`; and the documents and bytes of each cluster [K, 2].
    """
    path, folder, stamp, settings = task
    fitted = _loaded(folder, stamp)
    table = read_part_file(path, ["pos", "text"])
    found = [np.zeros(0, np.int64)]
    for first in range(0, len(table), _AT_ONCE):
        texts = table["text"].slice(first, _AT_ONCE)
        excerpts = [excerpt(text.as_py(), settings.characters) for text in texts]
        found.append(fitted.assign(excerpts, settings))
    clusters = np.concatenate(found)
    totals = np.zeros((fitted.matrix.shape[1], 2), np.int64)
    np.add.at(totals[:, 0], clusters, 1)
    np.add.at(totals[:, 1], clusters, pc.binary_length(table["text"]).to_numpy())
    decided = pa.table([table["pos"], pa.array(clusters, pa.int32())], ["pos", "cluster"])
    return decided, totals


@lru_cache(maxsize=1)
def _loaded(folder: Path, stamp: int) -> Clustering:
    """Read the clusters once in each process.

    Args:
        stamp: their checksum, because another run's folder may have the same name.
    """
    return Clustering.load(folder)
