"""Sampling weights: how often text is drawn, by source, language, topic and quality.

A stratum is all documents with the same source, language, cluster and quality band. Only those of
the four properties count for which the settings give weights. A stratum is written, tokenized and
read like a source of its own (such as `web.c07.q2`), so its weight becomes a weight of the mixture.

The weight of a stratum is its UTF-8 bytes times its factors. Groups of strata are then scaled to
the shares that the settings ask for. Weights are integers that add up to `TOTAL`. In training they
are shares of the tokens drawn; here they are computed from bytes, because no tokenizer is known
yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.console import warn
from bc2.data.language_keys import check_language_keys, stratum_language
from bc2.data.language_tags import most_specific
from bc2.data.mixture import MAX_BLOCK
from bc2.data.prep.settings import WeightsSettings
from bc2.data.prep.stages.base import Outcome, PrepStage, WorkingSet, removed
from bc2.errors import DataError, RecipeError, nearest

if TYPE_CHECKING:
    from bc2.data.corpus_config import CorpusConfig

#: The sum of all weights of a corpus.
TOTAL = 10**9

#: The cluster or band of a stratum for which it does not count, and the band of text that has no
#: quality score.
_NONE, _UNSCORED = -1, -2

_KEYS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("lang", pa.string(), nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("band", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


class Cell(NamedTuple):
    """What the documents of a stratum have in common; "" and -1 for what does not count."""

    source: str
    lang: str
    cluster: int
    band: int

    @property
    def name(self) -> str:
        """The stratum's name, valid as that of a source: ``web.zh.c07.q2``.

        ``qx`` stands for text without a quality score.
        """
        words = [self.source]
        words += [self.lang] if self.lang else []
        words += [f"c{self.cluster:02d}"] if self.cluster != _NONE else []
        words += [f"q{self.band}" if self.band >= 0 else "qx"] if self.band != _NONE else []
        return ".".join(words)


class WeightsStage(PrepStage):
    """Adds the column `stratum` (string). `settle` holds one row for each stratum."""

    name: ClassVar[str] = "weights"
    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = ()
    needs_all: ClassVar[bool] = True

    def __init__(self, settings: WeightsSettings):
        self.settings = settings

    def check_fit(self, config: CorpusConfig) -> None:
        """Before any work, check that the settings fit the rest of the recipe.

        Raises:
            RecipeError: the settings name a source that the recipe does not have, or need a
                column that no stage makes.
        """
        known = [source.name for source in config.sources]
        named = {"sources": self.settings.sources, "source_shares": self.settings.source_shares}
        for key, name in ((key, name) for key, table in named.items() for name in table):
            if name not in known:
                guess = nearest(name, known)
                raise RecipeError(
                    f"a weight for a source that the recipe does not have: {name!r}",
                    where=f"corpus.weights.{key}",
                    todo=f"did you mean {guess!r}?" if guess else f"it has {', '.join(known)}",
                )
        if self.settings.by_language:
            shares, factors = self.settings.language_shares, self.settings.languages
            keys = {"languages": factors, "language_shares": shares}
            check_language_keys(config.sources, keys)
        if self.settings.quality and config.quality is None:
            raise _needs("quality")
        if self.settings.by_cluster and config.clusters is None:
            raise _needs("clusters")
        most = config.clusters.clusters if config.clusters is not None else 0
        for number in self.settings.clusters:
            if int(number) >= most:
                raise RecipeError(
                    f"a weight for a cluster that there cannot be: {number}",
                    where="corpus.weights.clusters",
                    todo=f"corpus.clusters.clusters is {most}: give numbers from 0 to {most - 1}",
                )

    def keys(self, table: pa.Table) -> pa.Table:
        """Documents and bytes of each stratum in the part; without `pos`, which is not needed."""
        documents: Counter[Cell] = Counter()
        sizes: Counter[Cell] = Counter()
        lengths = pc.binary_length(table["text"]).to_pylist()
        for cell, size in zip(self._cells(table), lengths, strict=True):
            documents[cell] += 1
            sizes[cell] += size
        rows = [(*cell, documents[cell], sizes[cell]) for cell in sorted(documents)]
        columns = list(zip(*rows, strict=True)) or [()] * len(_KEYS)
        return pa.table(list(map(list, columns)), schema=_KEYS)

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Name the strata and compute their weights.

        Returns:
            ``{"total": 10**9, "weights": {stratum: integer}, "strata": {stratum: {"source",
            "documents", "bytes"}}}``, strata sorted, weights adding up to the total.

        Raises:
            DataError: a source or language has a share but no text, or all weights are 0.
        """
        documents: Counter[Cell] = Counter()
        sizes: Counter[Cell] = Counter()
        for name in work.parts:
            for row in pq.read_table(work.keys(name), schema=_KEYS).to_pylist():
                *cell, count, size = row.values()
                documents[Cell(*cell)] += count
                sizes[Cell(*cell)] += size
        weights = weigh(sizes, self.settings)
        names = name_strata(sizes, weights, self.settings.min_stratum_bytes)
        _write_verdicts(work, names)
        return _facts(names, documents, sizes, weights)

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Append the stratum of each document."""
        assert verdict is not None, "the stage settles"
        names = {Cell(*cell): name for *cell, name in map(dict.values, verdict.to_pylist())}
        strata = [names[cell] for cell in self._cells(table)]
        return Outcome(table.append_column("stratum", pa.array(strata, pa.string())), removed(()))

    def _cells(self, table: pa.Table) -> Iterable[Cell]:
        count = len(table)
        langs = [""] * count
        if self.settings.by_language:
            langs = [stratum_language(lang) for lang in table["lang"].to_pylist()]
        clusters = [_NONE] * count
        if self.settings.by_cluster:
            if "cluster" not in table.column_names:
                raise _needs("clusters")
            clusters = table["cluster"].to_pylist()
        bands = [_NONE] * count
        if self.settings.quality:
            if "quality" not in table.column_names:
                raise _needs("quality")
            bands = _bands(table["quality"], self.settings)
        return map(Cell, table["source"].to_pylist(), langs, clusters, bands)


def _needs(stage: str) -> RecipeError:
    return RecipeError(
        f"[corpus.weights] weights by {stage}, and that stage is off",
        where="corpus.weights",
        todo=f"add [corpus.{stage}], or take the key out",
    )


def _bands(scores: pa.ChunkedArray, settings: WeightsSettings) -> list[int]:
    """The quality band of each score.

    The bands' lowest scores are rounded to float32, as the scores are, so that a score of 0.7 is
    in the band that begins at 0.7.
    """
    lowest = [float(np.float32(score)) for score, _ in settings.quality]
    return [
        _UNSCORED if score is None or score != score else max(0, bisect_right(lowest, score) - 1)
        for score in scores.to_pylist()
    ]


# -- weights -------------------------------------------------------------------------------


def weigh(sizes: Mapping[Cell, int], settings: WeightsSettings) -> dict[Cell, Fraction]:
    """The weight of each stratum as an exact share; the shares add up to 1.

    Args:
        sizes: UTF-8 bytes of each stratum.

    Raises:
        DataError: a source or language has a share but no text, or all weights are 0.
    """
    if not sizes:
        return {}
    topics = _topics(sizes, settings)
    weights = {
        cell: size * _factor(cell, settings) * topics.get(cell.cluster, Fraction(1))
        for cell, size in sizes.items()
    }
    shares = settings.language_shares
    weights = _shared(weights, settings.source_shares, lambda cell: cell.source)
    weights = _shared(weights, shares, lambda cell: most_specific(shares, cell.lang) or cell.lang)
    total = sum(weights.values(), Fraction(0))
    if not total:
        raise DataError("every stratum has weight 0", where="corpus.weights")
    return {cell: weight / total for cell, weight in weights.items()}


def _factor(cell: Cell, settings: WeightsSettings) -> Fraction:
    factors = [settings.sources.get(cell.source, 1.0)]
    language = most_specific(settings.languages, cell.lang)
    factors += [] if language is None else [settings.languages[language]]
    factors += [f for number, f in settings.clusters.items() if int(number) == cell.cluster]
    factors += [settings.quality[cell.band][1]] if cell.band >= 0 else []
    product = Fraction(1)
    for factor in factors:
        product *= Fraction(str(factor))  # so that 0.1 is exactly a tenth
    return product


def _topics(sizes: Mapping[Cell, int], settings: WeightsSettings) -> dict[int, Fraction]:
    """The factor of each cluster due to the temperature: size ** (temperature - 1)."""
    if settings.cluster_temperature == 1:
        return {}
    clusters: Counter[int] = Counter()
    for cell, size in sizes.items():
        clusters[cell.cluster] += size
    # In decimal arithmetic, which gives the same digits on every machine.
    exact = Context(prec=12)
    power = Decimal(str(settings.cluster_temperature)) - 1
    return {
        cluster: Fraction(exact.power(Decimal(max(1, size)), power))
        for cluster, size in clusters.items()
    }


def _shared(
    weights: dict[Cell, Fraction], shares: Mapping[str, float], group: Callable[[Cell], str]
) -> dict[Cell, Fraction]:
    """Scale each group of strata to its share, and all other strata together to the rest of 1."""
    if not shares:
        return weights
    wanted = {name: Fraction(str(share)) for name, share in shares.items()}
    rest = 1 - sum(wanted.values(), Fraction(0))
    groups = {cell: group(cell) if group(cell) in wanted else "" for cell in weights}
    totals = dict.fromkeys([*wanted, ""], Fraction(0))
    for cell, weight in weights.items():
        totals[groups[cell]] += weight
    empty = [name for name, share in wanted.items() if share and not totals[name]]
    if empty:
        raise DataError(
            f"{empty[0]!r} has a share of what is drawn, but no text",
            where="corpus.weights",
            todo=f"remove its share; there is {', '.join(sorted(set(map(group, weights))))}",
        )
    if totals[""] and not rest:
        warn("corpus.weights: the shares add up to 1, so other text is never drawn")
    scales = {
        name: wanted.get(name, rest) / (total or Fraction(1)) for name, total in totals.items()
    }
    return {cell: weight * scales[groups[cell]] for cell, weight in weights.items()}


# -- strata --------------------------------------------------------------------------------


def name_strata(
    sizes: Mapping[Cell, int], weights: Mapping[Cell, Fraction], least: int
) -> dict[Cell, str]:
    """The name of the stratum of each cell; small cells of a source form its ``.rest``.

    A cell is small if it has fewer than `least` bytes, or if its weight is less than twice the
    smallest weight that the order of samples allows (twice, to leave room for later weights). If
    the rest is small itself, the next smallest cells of the source join it. Cells that are never
    drawn keep a stratum of their own, whatever their size.

    Raises:
        DataError: a stratum would have the name of another source.
    """
    names = {cell: cell.name for cell in sizes}
    for source in sorted({cell.source for cell in sizes}):
        mine = sorted(c for c in sizes if c.source == source and weights[c])
        for cell in _small(mine, sizes, weights, least):
            names[cell] = f"{source}.rest"
    _check_names(names)
    return names


def _small(
    cells: Iterable[Cell], sizes: Mapping[Cell, int], weights: Mapping[Cell, Fraction], least: int
) -> list[Cell]:
    """The cells of a source that form its rest: none, or at least two."""
    rarest = Fraction(2, MAX_BLOCK)
    rest: list[Cell] = []
    size, weight = 0, Fraction(0)
    fine = {cell: sizes[cell] >= least and weights[cell] >= rarest for cell in cells}
    for cell in sorted(fine, key=lambda c: (fine[c], sizes[c], c)):
        if fine[cell] and (not rest or (size >= least and weight >= rarest)):
            break
        rest.append(cell)
        size, weight = size + sizes[cell], weight + weights[cell]
    return rest if len(rest) > 1 else []


def _check_names(names: Mapping[Cell, str]) -> None:
    """Check that no stratum has the name of another source, which dots in names make possible."""
    owners = {cell.source.casefold(): cell.source for cell in names}
    for cell, name in names.items():
        other = owners.setdefault(name.casefold(), cell.source)
        if other != cell.source:
            raise DataError(
                f"a stratum of source {cell.source!r} would have the name of source {other!r}",
                where="corpus.sources",
                todo="rename one of them",
            )


def _write_verdicts(work: WorkingSet, names: Mapping[Cell, str]) -> None:
    rows = [(*cell, name) for cell, name in sorted(names.items())]
    schema = pa.schema([*list(_KEYS)[:4], pa.field("stratum", pa.string())])
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    verdict = pa.table(list(map(list, columns)), schema=schema)
    for part in work.parts:
        pq.write_table(verdict, work.verdict(part))


def _facts(
    names: Mapping[Cell, str],
    documents: Mapping[Cell, int],
    sizes: Mapping[Cell, int],
    weights: Mapping[Cell, Fraction],
) -> dict[str, Any]:
    strata: dict[str, dict[str, Any]] = {}
    shares: dict[str, Fraction] = {}
    for cell, name in sorted(names.items(), key=lambda item: item[1]):
        entry = strata.setdefault(name, {"source": cell.source, "documents": 0, "bytes": 0})
        entry["documents"] += documents[cell]
        entry["bytes"] += sizes[cell]
        shares[name] = shares.get(name, Fraction(0)) + weights[cell]
    return {"total": TOTAL, "weights": _integers(shares), "strata": strata}


def _integers(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Integer weights by the largest-remainder method.

    They add up to `TOTAL`, and no share above 0 becomes 0.
    """
    exact = {name: share * TOTAL for name, share in shares.items()}
    whole = {name: max(int(share), 1 if share else 0) for name, share in exact.items()}
    left = TOTAL - sum(whole.values()) if whole else 0
    order = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
    for name in order[: max(0, left)]:
        whole[name] += 1
    if left < 0:  # some were raised to 1, so the largest weight is reduced
        whole[max(whole, key=lambda name: (whole[name], name))] += left
    return whole
