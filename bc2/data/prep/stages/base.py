"""The interface of a stage: its methods, the table that it gets, and the tables that it returns.

The working set is a list of parts (`bc2.data.prep.part_files`): runs of documents, in the order
of `pos`. A stage turns a part into a part. If a decision needs the whole corpus, the stage works
in three steps: `keys` extracts from each part what the decision needs (never text), `settle`
decides and writes a verdict for each part, and `apply` carries the verdicts out. After the last
stage, `review` may look at what became of a decision.

A part may be any run of documents, so the result for a document must not depend on where parts
begin and end. The same input and settings give the same bytes, whatever the size of parts, the
number of workers or the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bc2.data.prep.group_by import Groups, Int64
from bc2.data.prep.part_files import pos_range
from bc2.data.prep.text.excerpts import beginning

if TYPE_CHECKING:
    from bc2.data.corpus_config import CorpusConfig

#: Bits of `pos` for the row in its file; the bits above hold the index of the file.
ROW_BITS = 40

#: The columns with which every part begins; stages append columns of their own.
RECORD = pa.schema(
    [
        pa.field("pos", pa.int64(), nullable=False),  # file index << ROW_BITS | row
        pa.field("id", pa.string(), nullable=False),  # of the text as it was read
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("lang", pa.string()),
        pa.field("origin_file", pa.string(), nullable=False),
        pa.field("origin_row", pa.int64(), nullable=False),
    ]
)

#: One row for each dropped document, and for each reason for which text was cut out of one.
REMOVED = pa.schema(
    [
        pa.field("pos", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # UTF-8 bytes of the removed text
        pa.field("whole", pa.bool_(), nullable=False),  # the document was dropped, not cut
        pa.field("detail", pa.string()),  # what matched or failed, at most DETAIL characters
        pa.field("place", pa.int64()),  # character of the text before the stage; null if unknown
    ]
)

#: The most characters of a detail.
DETAIL = 200


class RemovedRow(NamedTuple):
    """A row of REMOVED: a dropped document, or what was cut out of one for one reason."""

    pos: int
    reason: str
    bytes: int
    whole: bool
    detail: str | None = None
    place: int | None = None
    """Where the text that decided begins, in characters of the text before the stage."""


Item = TypeVar("Item")
Result = TypeVar("Result")


class Outcome(NamedTuple):
    """The result of a stage for one part."""

    table: pa.Table
    """The documents that stay, in the order of `pos`: RECORD and the columns of stages."""
    removed: pa.Table
    """What was removed: REMOVED, in any order."""
    annotations: pa.Table | None = None
    """Rows for the file that `PrepStage.annotations_file` names, in the order of `pos`."""


class Aftermath(NamedTuple):
    """What is on disk after the last stage, as `PrepStage.review` gets it."""

    verdicts: Sequence[Path]
    """The stage's own verdicts, as `PrepStage.settle` wrote them."""
    parts: Sequence[Path]
    """The parts of the corpus, with the documents that are left."""
    cut: Sequence[Path]
    """Verdicts of later stages that cut the documents in them (`PrepStage.cuts`)."""


class WorkingSet(ABC):
    """The parts of the corpus, as `PrepStage.settle` gets them."""

    parts: list[str]
    """Names of the parts, sorted."""
    folder: Path
    """A folder for this stage's temporary files, deleted when the stage has settled."""

    @abstractmethod
    def part(self, name: str) -> Path:
        """The file of a part before the stage."""

    @abstractmethod
    def keys(self, name: str) -> Path:
        """The file with what `PrepStage.keys` returned for a part."""

    @abstractmethod
    def verdict(self, name: str) -> Path:
        """The file that `PrepStage.settle` must write for every part, even without rows."""

    def hand_out(self, decided: pa.Table) -> None:
        """Write every part's verdict: the rows of `decided` whose `pos` lies in the part.

        Args:
            decided: `pos` and any other columns, in the order of `pos`.
        """
        places = decided["pos"].to_numpy()
        for name in self.parts:
            low, high = pos_range(self.part(name)) or (0, -1)
            first, last = np.searchsorted(places, [low, high + 1])
            pq.write_table(decided.slice(first, last - first), self.verdict(name))

    def groups(self, *columns: str, without: Int64 | None = None) -> Groups:
        """Groups of documents that are equal in some columns of the keys.

        Args:
            columns: names of int64 columns.
            without: `pos` of documents to leave out, sorted.
        """
        paths = [self.keys(name) for name in self.parts]
        return self.group(paths, columns, np.zeros(0, np.int64) if without is None else without)

    @abstractmethod
    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        """Groups of rows with equal values in Parquet files, found by this run's engine."""

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Call a picklable function on items in parallel; results in the order of items."""


class PrepStage(ABC):
    """One step of the funnel. It must be picklable: workers get a copy."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Part of the corpus's key: raise it if the same input and settings give another result."""
    reasons: ClassVar[tuple[str, ...]]
    """Every reason for which the stage removes a document or cuts text."""
    needs_all: ClassVar[bool] = False
    """Whether the stage decides over the whole corpus, with `keys` and `settle` before `apply`."""
    annotations_file: ClassVar[str | None] = None
    """Name of a file in the corpus that lists the annotations, one JSON object a line."""

    @abstractmethod
    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Work on one part.

        Args:
            table: RECORD and the columns of earlier stages.
            verdict: what `settle` wrote for the part; None unless `needs_all`.

        Returns:
            The outcome. Return `table` itself if nothing changes: the part is then not written
            again.
        """

    @classmethod
    def of(cls, config: CorpusConfig) -> Self:
        """Make the stage with the settings of its table, [corpus.NAME]."""
        make: Any = cls
        made: Self = make(getattr(config, cls.name))
        return made

    def check(self) -> None:  # noqa: B027  most stages have nothing to check
        """Before any work, check that the files and models that the settings name can be used.

        Raises:
            RecipeError, DataError: one cannot.
        """

    def check_fit(self, config: CorpusConfig) -> None:  # noqa: B027
        """Before any work, check that the settings fit the rest of the recipe.

        Raises:
            RecipeError: they do not.
        """

    def passes_over(self, lang: str | None) -> str | None:
        """What the stage leaves undone for text of a stated language that it does not know.

        Returns:
            A phrase that follows the stage's name, such as "gives no scores"; None if it knows the
            language, or has nothing to do with languages.
        """
        return None

    def prepare(self, folder: Path) -> None:  # noqa: B027
        """Make once what all workers need, in a folder that they can read."""

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of every file that affects the result, by name: part of the corpus's key."""
        return {}

    def keys(self, table: pa.Table) -> pa.Table:
        """What `settle` needs from a part: `pos`, integers and short values, never text."""
        raise NotImplementedError(f"{self.name} settles nothing")

    def settle(self, work: WorkingSet) -> dict[str, Any]:
        """Decide over the whole corpus, and write each part's verdict.

        Returns:
            Facts about the corpus for ``funnel.json``; their numbers are integers.
        """
        raise NotImplementedError(f"{self.name} settles nothing")

    def cuts(self) -> bool:
        """Whether `apply` cuts text out of documents that its verdict names."""
        return False

    def review(self, after: Aftermath) -> dict[str, Any]:
        """After the last stage, look at what became of what `settle` decided.

        Returns:
            More facts, beside those of `settle`.
        """
        return {}


def removed(rows: Iterable[RemovedRow]) -> pa.Table:
    """A table REMOVED from its rows; long details are shortened, personal data in them masked."""
    columns: tuple[list[Any], ...] = tuple(map(list, zip(*rows, strict=True))) or ([],) * 6
    details = [None if text is None else beginning(text, None, DETAIL) for text in columns[4]]
    return pa.table([*columns[:4], details, columns[5]], schema=REMOVED)


def remaining(table: pa.Table, gone: Any) -> pa.Table:
    """The rows that are False in the mask `gone`; the table itself if none is True."""
    import pyarrow.compute as pc

    return table.filter(pc.invert(gone)) if pc.any(gone).as_py() else table


def dropped(table: pa.Table, mask: Any, reason: str) -> pa.Table:
    """A table REMOVED for the documents of a part that are True in a mask and are dropped."""
    import pyarrow.compute as pc

    gone = table.filter(mask)
    count = len(gone)
    return pa.table(
        [
            gone["pos"],
            pa.repeat(pa.scalar(reason), count),
            pc.binary_length(gone["text"].cast(pa.large_binary())).cast(pa.int64()),
            pa.repeat(pa.scalar(True), count),
            pa.nulls(count, pa.string()),
            pa.nulls(count, pa.int64()),
        ],
        schema=REMOVED,
    )
