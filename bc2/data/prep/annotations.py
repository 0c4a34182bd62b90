"""Annotations of a stage on documents: kept for each part, then joined to a file of the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bc2.files import make_directory, sync_open

#: Rows that are Python objects at a time.
_ROWS = 1024


#: Folder of the annotations in that of a segment. Killed runs of older versions have the same.
_FOLDER = "notes"


def write_annotations(segment: Path, stage: str, part: str, annotations: pa.Table) -> None:
    """Write a stage's annotations of one part into the folder of the part's segment."""
    folder = segment / _FOLDER / stage
    make_directory(folder)
    pq.write_table(annotations, folder / f"{part}.parquet")


def join_annotations(work: Path, stage: str, out: Path) -> None:
    """Write a stage's annotations of all parts to one file, in the order of parts, as JSON lines.

    Args:
        work: the folder of the segments that `write_annotations` was given.
    """
    with out.open("wb") as stream:
        for path in sorted(work.glob(f"*/{_FOLDER}/{stage}/*.parquet")):
            with pq.ParquetFile(path) as part:
                for batch in part.iter_batches(_ROWS):
                    lines = (json.dumps(row, ensure_ascii=False) for row in batch.to_pylist())
                    stream.write("".join(f"{line}\n" for line in lines).encode())
        stream.flush()
        sync_open(stream.fileno(), out)
