"""Candidate pairs, components and the nodes that stay, against plain Python."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.stages.deduplication import connected_components as components_module
from bc2.data.prep.stages.deduplication.connected_components import (
    LEADERS,
    NEIGHBOURS,
    WHOLE,
    WORSE,
    PairSet,
    bucket_pairs,
    candidate_pairs,
    connected_components,
    keepers,
)


def laid_out(buckets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    flat = np.array([member for bucket in buckets for member in bucket], np.int64)
    return flat, np.cumsum([0, *map(len, buckets)])


buckets_st = st.lists(
    st.integers(0, WHOLE + 20).flatmap(
        lambda size: st.permutations(range(1000, 1000 + 3 * size, 3)) if size else st.just([])
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(buckets=buckets_st)
def test_pairs_are_all_of_small_buckets_and_leaders_and_neighbours_of_large(buckets):
    expected, passed = [], 0
    for bucket in buckets:
        ordered = sorted(bucket)
        for i, j in combinations(range(len(ordered)), 2):
            if len(ordered) <= WHOLE or i < LEADERS or j - i <= NEIGHBOURS:
                expected.append((ordered[i], ordered[j]))
            else:
                passed += 1
    one, two, more = bucket_pairs(*laid_out(buckets))
    assert sorted(zip(one.tolist(), two.tolist(), strict=True)) == sorted(expected)
    assert more == passed


@settings(max_examples=60, deadline=None)
@given(buckets=buckets_st, at_once=st.integers(1, 50))
def test_pairs_of_some_buckets_after_the_other_are_those_of_all(buckets, at_once):
    members, ends = laid_out(buckets)
    one, two, passed = bucket_pairs(members, ends)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components_module, "_PAIRS", at_once)
        batches = list(candidate_pairs(members, ends))
    found = [(a, b) for one, two, _ in batches for a, b in zip(one, two, strict=True)]
    assert sorted(found) == sorted(zip(one, two, strict=True))
    assert sum(more for *_, more in batches) == passed
    largest = max((len(bucket) for bucket in buckets), default=0)
    assert all(len(one) <= at_once + 32 * largest for one, *_ in batches)


@pytest.mark.parametrize("size", [WHOLE + 1, 1000, 50_000])
def test_pairs_of_a_large_bucket_are_linear_and_connect_it(size):
    members = np.random.default_rng(0).permutation(size)
    one, two, passed = bucket_pairs(members, np.array([0, size]))
    assert len(one) <= (LEADERS + NEIGHBOURS) * size
    assert len(one) + passed == size * (size - 1) // 2
    assert len(set(connected_components(size, one, two).tolist())) == 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20), max_size=4)
)
def test_a_set_of_pairs_holds_each_once_in_order(batches):
    pairs = PairSet(31)
    for batch in batches:
        one, two = np.array(batch, np.int64).reshape(-1, 2).T
        pairs.add(one, two)
    expected = sorted({pair for batch in batches for pair in batch})
    assert list(zip(*(side.tolist() for side in pairs.both()), strict=True)) == expected
    assert len(pairs) == len(expected)


def naive_components(count: int, edges: list[tuple[int, int]]) -> list[frozenset[int]]:
    groups = {i: {i} for i in range(count)}
    for a, b in edges:
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for member in groups[b]:
                groups[member] = groups[a]
    return [frozenset(groups[i]) for i in range(count)]


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 25))
    node = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=30, unique=True))
    scores = st.lists(
        st.sampled_from([0.0, 0.25, 0.28125, 0.5, float("nan")]), min_size=count, max_size=count
    )
    sizes = st.lists(st.integers(0, 4), min_size=count, max_size=count)
    return count, edges, draw(sizes), draw(st.none() | scores)


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_components_and_who_stays_are_those_of_plain_python(graph):
    count, edges, sizes, scores = graph
    one, two = np.array(edges, np.int64).reshape(-1, 2).T
    labels = connected_components(count, one, two)
    groups = naive_components(count, edges)
    for a, b in combinations(range(count), 2):
        assert (labels[a] == labels[b]) == (groups[a] == groups[b])

    def keeper(group: frozenset[int]) -> int:
        known = {node: scores[node] if scores else 0.0 for node in group}
        known = {node: -1.0 if np.isnan(score) else score for node, score in known.items()}
        good = [node for node in group if max(known.values()) - known[node] < WORSE]
        return min(good, key=lambda node: (-sizes[node], node))

    quality = None if scores is None else np.array(scores, np.float32)
    stays = keepers(labels, np.array(sizes, np.int64), quality)
    assert stays.tolist() == [keeper(group) for group in groups]


def test_nothing_gives_nothing():
    none = np.zeros(0, np.int64)
    assert len(keepers(connected_components(0, none, none), none, None)) == 0
    assert [len(side) for side in PairSet(0).both()] == [0, 0]
    one, two, passed = bucket_pairs(none, np.array([0]))
    assert (len(one), len(two), passed) == (0, 0, 0)
