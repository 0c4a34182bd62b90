"""Parquet files and Hugging Face datasets, opened to be read row by row."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bc2.data.documents import SourceFile
from bc2.data.inputs import hub_name
from bc2.data.source_config import OriginConfig
from bc2.errors import DataError
from bc2.streams import first_line, reading


@contextmanager
def open_parquet(file: SourceFile) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`, closed at the end.

    Raises:
        DataError: it is missing or damaged, found while it is opened or read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with (
        _arrow(file, pa.ArrowException),
        # Pages on demand: a row group may be larger than memory.
        pq.ParquetFile(
            file.path if isinstance(file.path, Path) else file.path.open("rb"),
            pre_buffer=False,
            buffer_size=1 << 20,
            page_checksum_verification=True,
        ) as parquet,
    ):
        yield parquet


def check_columns(names: Sequence[str], file: Any, wanted: Collection[str] | None = None) -> None:
    """Check that no column is there twice: of a row the last would be taken, or none.

    Args:
        names: of the columns of a table.
        wanted: look for these alone.

    Raises:
        DataError: one is.
    """
    for name, count in Counter(names).items():
        if count > 1 and (wanted is None or name in wanted):
            raise DataError(
                f"the column {name!r} is there twice", where=str(file),
                todo="leave one of them out",
            )  # fmt: skip


@contextmanager
def _arrow(file: SourceFile, arrow_error: type[Exception]) -> Iterator[None]:
    """pyarrow's errors as those of any damaged file."""
    with reading(file.path):
        try:
            yield
        except arrow_error as error:
            raise EOFError(str(error)) from error


def hf_origin(source: OriginConfig) -> str:
    """What stands for the file of a Hugging Face dataset's rows: ``owner/name/split``."""
    assert source.hf is not None
    return f"{hub_name(source.hf)}/{source.split}"


def hf_rows(source: OriginConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Hugging Face dataset by number, from 1, streamed.

    Raises:
        DataError: it cannot be found or read.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import load_dataset

    assert source.hf is not None
    with _hf(source):
        rows = iter(
            load_dataset(
                source.hf,
                name=source.hf_config,
                split=source.split,
                revision=source.revision,
                streaming=True,
            )
        )
    for number in itertools.count(1):
        with _hf(source):
            row = next(rows, None)
        if row is None:
            return
        yield number, row


@contextmanager
def _hf(source: OriginConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # datasets, the hub and their HTTP library: no common class
        raise DataError(
            f"cannot read the dataset: {first_line(error)}",
            where=f"hf:{source.hf}",
            todo="check its name, hf_config, split and revision, and the network",
        ) from error
