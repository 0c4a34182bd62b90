"""Groups of equal values, by sorting and by query, against plain Python."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.group_by import Groups, sorted_groups

rows_st = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), max_size=40)


def sorted_(paths, columns, without):
    return sorted_groups(paths, columns, without)


def queried(paths, columns, without):
    daft = pytest.importorskip("daft", reason="needs the ray extra")
    from bc2.data.prep.ray_engine import queried_groups

    return queried_groups(daft.read_parquet([str(path) for path in paths]), columns, without)


def naive(rows, columns, without) -> set[frozenset[int]]:
    groups = defaultdict(set)
    for pos, row in enumerate(rows):
        if pos not in without:
            groups[tuple(row["ab".index(name)] for name in columns)].add(pos)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


@pytest.mark.parametrize(("find", "examples"), [(sorted_, 150), (queried, 12)])
def test_groups_are_those_of_plain_python(find, examples, tmp_path):
    @settings(max_examples=examples, deadline=None)
    @given(rows_st, st.integers(0, 40), st.sets(st.integers(0, 40)), st.sampled_from(["a", "ab"]))
    def check(rows, cut, without, columns):
        a, b = np.array(rows, np.int64).reshape(-1, 2).T
        table = pa.table({"pos": np.arange(len(rows)), "a": a, "b": b})
        paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
        pq.write_table(table[cut:], paths[0])  # in no order of pos
        pq.write_table(table[:cut], paths[1])
        found = find(paths, list(columns), np.array(sorted(without), np.int64))
        split = np.split(found.members, found.ends[1:-1]) if len(found.members) else []
        assert {frozenset(group.tolist()) for group in split} == naive(rows, columns, without)
        assert len(split) == len(found.sizes)
        later = sorted(pos for group in split for pos in set(group.tolist()) - {group.min()})
        assert found.later().tolist() == later

    check()


def test_no_rows():
    none = Groups.none()
    assert len(none.sizes) == len(none.firsts()) == len(none.later()) == 0
    found = sorted_groups([], ["a"], none.members)
    assert (found.members.tolist(), found.ends.tolist()) == ([], [0])
