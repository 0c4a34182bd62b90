"""Pairs on disk: answers as conversations, and which of two is the better one.

    train.parquet   heldout.parquet   pairs.json   answers/ (`bc2.data.chats.chats`)

An answer is stored once, with its prompt, in however many pairs it is. Of a conversation in
``answers/`` the prompt's messages are not learnt and the answer's are. Columns of a pair: prompt
(a number, the same for pairs of one prompt), chosen, rejected (places in the split of
``answers/``), source, file, row (from 1), the scores that the data has, and the targets that they
become; null where there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bc2.data.chats.chats import Chats, SplitWriter
from bc2.data.chats.conversation import Conversation
from bc2.data.documents import SourceFile
from bc2.data.splits import Split
from bc2.data.tables import open_parquet
from bc2.errors import DataError
from bc2.files import make_directory

FACTS = "pairs.json"

#: The folder of the answers, whose form is that of chats.
ANSWERS = "answers"

SCHEMA = pa.schema(
    [
        pa.field("prompt", pa.int64(), nullable=False),
        pa.field("chosen", pa.int64(), nullable=False),
        pa.field("rejected", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("chosen_score", pa.float64()),
        pa.field("rejected_score", pa.float64()),
        pa.field("chosen_target", pa.float64()),
        pa.field("rejected_target", pa.float64()),
    ]
)


class Normalisation(NamedTuple):
    """How the scores of a source become targets: (score - centre) / scale."""

    centre: float
    scale: float

    def __call__(self, score: float | None) -> float | None:
        return None if score is None else (score - self.centre) / self.scale


class PairWriter:
    """Writes the pairs of one split; of a pair it holds some numbers, of the text a row group."""

    def __init__(self, folder: Path, split: Split):
        make_directory(folder / ANSWERS)
        self.count = 0
        self._path = folder / f"{split}.parquet"
        self._answers = SplitWriter(folder / ANSWERS, split)
        self._places: dict[tuple[str, str], int] = {}
        self._prompts: dict[str, int] = {}
        self._rows: list[tuple[Any, ...]] = []

    def __enter__(self) -> Self:
        self._answers.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._answers.__exit__(kind, error, trace)

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return len(self._prompts)

    @property
    def answers(self) -> int:
        """How many answers there are."""
        return self._answers.count

    def add(
        self, prompt: str, chosen: Conversation, rejected: Conversation, form: str,
        scores: tuple[float | None, float | None] = (None, None),
    ) -> None:  # fmt: skip
        """Append a pair.

        Args:
            prompt: the digest of what both answer.
            form: the format of the row.
            scores: of the chosen and the rejected answer, as the data has them.
        """
        number = self._prompts.setdefault(prompt, len(self._prompts))
        places = (self._place(chosen, form), self._place(rejected, form))
        self._rows.append((number, *places, chosen.source, chosen.file, chosen.row, *scores))
        self.count += 1

    def _place(self, answer: Conversation, form: str) -> int:
        key = (answer.source, answer.digest)
        if key not in self._places:
            self._places[key] = self._answers.count
            self._answers.add(answer, form)
        return self._places[key]

    def finish(self, normalisations: Mapping[str, Normalisation]) -> None:
        """Write the pairs, with the targets that the scores of each source become."""
        rows = [
            (*row, *(norm(score) if norm else None for score in row[-2:]))
            for row in self._rows
            for norm in [normalisations.get(row[3])]
        ]
        columns = zip(*rows, strict=True) if rows else iter([()] * len(SCHEMA))
        arrays = [pa.array(values, each.type) for values, each in zip(columns, SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=SCHEMA)
        pq.write_table(table, self._path, compression="zstd", write_page_checksum=True)


@dataclass(frozen=True)
class PairTable:
    """The pairs of a split as arrays. Shapes: P pairs."""

    index: npt.NDArray[np.int64]
    """[P], its place in the split."""
    prompt: npt.NDArray[np.int64]
    """[P], equal for pairs of one prompt."""
    chosen: npt.NDArray[np.int64]
    """[P], the place of the better answer in the split of `Pairs.answers`."""
    rejected: npt.NDArray[np.int64]
    """[P]"""
    source_ids: npt.NDArray[np.int64]
    """[P], into `Pairs.sources`."""
    scores: npt.NDArray[np.float64]
    """[P, 2] of the chosen and the rejected answer, as the data has them; NaN for none."""
    targets: npt.NDArray[np.float64]
    """[P, 2], what the scores became; NaN for none."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, some: npt.NDArray[Any]) -> PairTable:
        """Some of the pairs, by place or by a mask."""
        return PairTable(*(getattr(self, each.name)[some] for each in fields(self)))

    @property
    def gaps(self) -> npt.NDArray[np.float64]:
        """[P], the score of the chosen answer above that of the rejected one; NaN for none."""
        gaps: npt.NDArray[np.float64] = self.scores[:, 0] - self.scores[:, 1]
        return gaps


class Pairs:
    """Comparisons as a stage made them.

    Attributes:
        answers: every answer once, with its prompt.
        sources: their names, in the order of the recipe.
        times: how often an epoch reads each pair of a source.
        facts: the contents of `pairs.json`.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], answers: Chats):
        self.path = path
        self.facts = facts
        self.answers = answers
        self.sources: tuple[str, ...] = tuple(source["name"] for source in facts["sources"])
        self.times: tuple[float, ...] = tuple(source["times"] for source in facts["sources"])

    @classmethod
    def open(cls, path: Path) -> Pairs:
        """Open what the stage of pairs wrote.

        Raises:
            DataError: the directory holds no pairs.
        """
        place = path / FACTS
        try:
            return cls(path, json.loads(place.read_bytes()), Chats.open(path / ANSWERS))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"these are no pairs: {error}", where=str(place),
                todo="name what `bc2 data pairs` made",
            ) from error  # fmt: skip

    def count(self, split: Split) -> int:
        """How many pairs a split has."""
        with self._opened(split) as file:
            return int(file.metadata.num_rows)

    def table(self, split: Split) -> PairTable:
        """All pairs of a split, some numbers of each."""
        with self._opened(split) as file:
            rows = file.read()
        known = pa.array(self.sources, pa.string())
        numbers = {
            name: np.asarray(rows[name].to_numpy(), np.int64)
            for name in ("prompt", "chosen", "rejected")
        }
        return PairTable(
            index=np.arange(len(rows)),
            source_ids=np.asarray(pc.index_in(rows["source"], known).to_numpy(), np.int64),
            scores=_both(rows, "score"),
            targets=_both(rows, "target"),
            **numbers,
        )

    def places(self, split: Split, indices: Iterable[int]) -> Iterator[str]:
        """Where some pairs were read, for errors."""
        with self._opened(split) as file:
            rows = file.read(columns=["file", "row"])
        for index in indices:
            one = rows.slice(index, 1).to_pylist()[0]
            yield f"{one['file']}, row {one['row']:,}"

    def origins(self, split: Split) -> pa.Table:
        """The source, file and row of each pair of a split."""
        with self._opened(split) as file:
            return file.read(columns=["source", "file", "row"])

    def _opened(self, split: Split) -> AbstractContextManager[Any]:
        name = f"{split}.parquet"
        return open_parquet(SourceFile(name, self.path / name))


def _both(rows: pa.Table, what: str) -> npt.NDArray[np.float64]:
    columns = [rows[f"{which}_{what}"].to_numpy() for which in ("chosen", "rejected")]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
