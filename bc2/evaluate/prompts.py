"""The prompts of a task as token ids, stored by samples so that a part can be read alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from bc2.errors import DataError

#: "score": log-likelihoods of continuations; "generate": a text; "rolling": a whole text's
#: log-likelihood.
Kind = Literal["score", "generate", "rolling"]

#: Samples that are read together: a row group of the file, and a unit of work.
GROUP = 256


@dataclass(frozen=True)
class Prompt:
    """The requests of one sample."""

    doc_id: int
    """Its row in the task's split, from 0."""
    digest: str
    """Hex SHA-256 of the text of its first prompt: lm-eval's ``prompt_hash``."""
    question_tokens: int
    """Tokens of the question without shots."""
    contexts: Sequence[Sequence[int]]
    """Each distinct one, as token ids."""
    asked: Sequence[tuple[int, Sequence[int]]]
    """For each request the number of its context, and the continuation to score; () to generate."""


@dataclass(frozen=True)
class TaskPrompts:
    """What is known of a task's prompts without reading them."""

    task: str
    kind: Kind
    samples: int
    """How many there are."""
    generation: dict[str, Any]
    """lm-eval's ``generation_kwargs``, where texts are generated."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_SCHEMA = pa.schema(
    [
        ("doc_id", pa.int32()),
        ("digest", pa.string()),
        ("question_tokens", pa.int32()),
        ("contexts", pa.list_(pa.list_(pa.int32()))),
        ("context_of", pa.list_(pa.int32())),
        ("continuations", pa.list_(pa.list_(pa.int32()))),
    ]
)


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write the prompts of a task, a row group for each `GROUP` samples."""
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for group in _grouped(prompts):
            writer.write_table(pa.Table.from_pylist(group, _SCHEMA), row_group_size=GROUP)


def _grouped(prompts: Iterable[Prompt]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for prompt in prompts:
        group.append(
            {
                "doc_id": prompt.doc_id,
                "digest": prompt.digest,
                "question_tokens": prompt.question_tokens,
                "contexts": prompt.contexts,
                "context_of": [context for context, _ in prompt.asked],
                "continuations": [continuation for _, continuation in prompt.asked],
            }
        )
        if len(group) == GROUP:
            yield group
            group = []
    if group:
        yield group


class PromptFile:
    """The stored prompts of a task.

    Raises:
        DataError: the file is damaged; so do `read` and `heads`.
    """

    def __init__(self, path: Path):
        self._path = path
        with self._whole():
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def read(self, first: int, last: int) -> list[Prompt]:
        """The samples from `first` to before `last`, which lie in one row group."""
        group = first // GROUP
        assert last <= (group + 1) * GROUP, "a unit of work crosses row groups"
        with self._whole():
            table = self._file.read_row_group(group)
        start = first - group * GROUP
        return [_prompt(row) for row in table.slice(start, last - first).to_pylist()]

    def heads(self) -> Iterator[tuple[int, str, int]]:
        """Row, digest of the prompt and tokens of the question, of each sample."""
        names = ["doc_id", "digest", "question_tokens"]
        with self._whole():
            for batch in self._file.iter_batches(columns=names):
                for row in batch.to_pylist():
                    yield row["doc_id"], row["digest"], row["question_tokens"]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(
                f"stored prompts are damaged: {error}",
                where=str(self._path),
                todo="remove this file: they are built again",
            ) from error


def _prompt(row: dict[str, Any]) -> Prompt:
    asked = list(zip(row["context_of"], row["continuations"], strict=True))
    return Prompt(row["doc_id"], row["digest"], row["question_tokens"], row["contexts"], asked)
