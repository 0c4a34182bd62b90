"""Parts of a corpus are cut by their rows alone."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.corpus import SCHEMA, PartWriter


def rows(sizes: list[int]) -> pa.Table:
    count = len(sizes)
    texts = ["x" * size for size in sizes]
    return pa.table(
        [texts, texts, ["s"] * count, [None] * count, ["f"] * count, range(count)], schema=SCHEMA
    )


def naive_parts(sizes: list[int], part: int, group: int) -> list[list[list[int]]]:
    """Sizes by part and row group: one row after another, as they stand."""
    parts: list[list[list[int]]] = [[[]]]
    for size in sizes:
        parts[-1][-1].append(size)
        if sum(map(sum, parts[-1])) >= part:
            parts.append([[]])
        elif sum(parts[-1][-1]) >= group:
            parts[-1].append([])
    return [kept for one in parts if (kept := [group for group in one if group])]


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=40),
    seed=st.integers(0, 100),
    part=st.integers(1, 300),
    group=st.integers(1, 120),
)
def test_however_rows_come_the_files_are_the_same(sizes, seed, part, group, tmp_path_factory):
    cuts = sorted(random.Random(seed).choices(range(len(sizes) + 1), k=4))
    table, found = rows(sizes), []
    for edges in ([0, len(sizes)], [0, *cuts, len(sizes)], range(len(sizes) + 1)):
        root = tmp_path_factory.mktemp("corpus")
        with pytest.MonkeyPatch.context() as patch, PartWriter(root, "train", "s", part) as writer:
            patch.setattr("bc2.data.corpus.ROW_GROUP_BYTES", group)
            for a, b in pairwise(edges):
                writer.add(table[a:b], np.array(sizes[a:b], np.int64))
        found.append((writer.parts, [(root / part["file"]) for part in writer.parts]))
    parts, files = found[0]
    assert all(other == parts for other, _ in found)
    assert len({tuple(map(digest, files)) for _, files in found}) == 1
    assert [groups(file) for file in files] == naive_parts(sizes, part, group)
    assert sum(each["bytes"] for each in parts) == sum(sizes)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def groups(path: Path) -> list[list[int]]:
    with pq.ParquetFile(path) as file:
        tables = [file.read_row_group(i) for i in range(file.num_row_groups)]
    return [[len(text) for text in table["text"].to_pylist()] for table in tables]
