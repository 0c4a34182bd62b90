"""What stages say of documents beside removing them: kept by part, then listed in the corpus."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bc2.files import make_directory

#: Rows held as Python objects at once.
_ROWS = 1024


def keep_notes(segment: Path, stage: str, part: str, notes: pa.Table) -> None:
    """Write a stage's notes of one part into the folder of the part's segment."""
    folder = segment / "notes" / stage
    make_directory(folder)
    pq.write_table(notes, folder / f"{part}.parquet")


def list_notes(work: Path, stage: str, out: Path) -> None:
    """Write a stage's notes of all parts to a file, in their order: a JSON object a line.

    Args:
        work: the directory below which `keep_notes` was given segments.
    """
    with out.open("wb") as stream:
        for path in sorted(work.glob(f"*/notes/{stage}/*.parquet")):
            with pq.ParquetFile(path) as part:
                for batch in part.iter_batches(_ROWS):
                    lines = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
                    stream.write("".join(f"{line}\n" for line in lines).encode())
        stream.flush()
        os.fsync(stream.fileno())
