"""Batches against a naive reading of the shards: labels, boundaries, coverage, prefetch."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bc2.data import loader as module
from bc2.data.loader import (
    IGNORED,
    SAMPLE,
    Batch,
    Loader,
    heldout_batches,
    pack,
    read_ahead,
    total_weights,
)
from bc2.data.mixture import Mixture
from bc2.data.shards import TokenShards

S = 16


@pytest.fixture(scope="module")
def shards(tokens) -> TokenShards:
    return TokenShards.open(tokens)


def make_loader(shards: TokenShards, seed: int = 0) -> Loader:
    windows = {s: (shards.num_tokens("train", s) - 1) // S for s in shards.sources("train")}
    return Loader(shards, "train", Mixture(windows, None, seed), S, shards.eos_id)


def naive(tokens: np.ndarray, following: np.ndarray, eos: int) -> tuple[list, list, int]:
    """Labels and document starts, position by position."""
    labels, starts = [], []
    for r, row in enumerate(tokens):
        for c, token in enumerate(row):
            labels.append(IGNORED if token == eos else following[r][c])
            if c == 0 or row[c - 1] == eos:
                starts.append(r * len(row) + c)
    starts.append(tokens.size)
    return labels, starts, max(np.diff(starts))


def check(batch: Batch, following: np.ndarray, eos: int) -> None:
    labels, starts, longest = naive(batch.tokens, following, eos)
    assert batch.labels.flatten().tolist() == labels
    assert batch.cu_seqlens.tolist() == starts
    assert batch.max_seqlen == longest
    assert batch.num_labels == sum(label != IGNORED for label in labels)
    assert (batch.tokens.dtype, batch.labels.dtype) == (np.int64, np.int64)
    assert batch.cu_seqlens.dtype == np.int32


def test_batches_are_windows_of_the_shards(shards):
    loader = make_loader(shards)
    batch = loader.batch(100, 24)
    source_ids, windows, _ = loader.mixture.locate(np.arange(100, 124))
    assert batch.source_ids.tolist() == source_ids.tolist()
    rows = np.stack(
        [
            shards.window("train", loader.mixture.sources[s], w * S, S + 1)
            for s, w in zip(source_ids, windows, strict=True)
        ]
    ).astype(np.int64)
    assert np.array_equal(batch.tokens, rows[:, :-1])
    check(batch, rows[:, 1:], shards.eos_id)
    assert (batch.tokens == shards.eos_id).any()


def test_an_epoch_predicts_each_token_once(shards):
    """Counted by source over natural weights: every label inside documents, less the tail."""
    loader = make_loader(shards)
    mixture = loader.mixture
    for number, source in enumerate(mixture.sources):
        n = mixture.windows[source]
        # All draws of the first epoch, wherever the mixture put them.
        indices = np.arange(3 * sum(mixture.windows.values()))
        ids, windows, epochs = mixture.locate(indices)
        first = indices[(ids == number) & (epochs == 0)]
        assert sorted(windows[first].tolist()) == list(range(n))
        labels = np.concatenate([loader.batch(int(i), 1).labels for i in first])
        tokens = shards.window("train", source, 0, n * S + 1).astype(np.int64)
        wanted = Counter(tokens[1:][tokens[:-1] != shards.eos_id].tolist())
        assert Counter(labels[labels != IGNORED].tolist()) == wanted
        assert loader.left_out()[source] == shards.num_tokens("train", source) - 1 - n * S < S


def test_ranks_and_batch_sizes_see_the_same_samples(shards):
    loader = make_loader(shards)
    whole = loader.batch(7, 12)
    parts = [make_loader(shards).batch(first, 3) for first in (7, 10, 13, 16)]
    assert np.array_equal(whole.tokens, np.concatenate([p.tokens for p in parts]))
    with loader.iterate(7, 12) as batches:
        one = [next(batches).tokens for _ in range(4)]
    ranks = []
    for rank in range(2):
        with loader.iterate(7 + rank * 6, 6, stride=12) as batches:
            ranks.append([next(batches).tokens for _ in range(4)])
    for step in range(4):
        assert np.array_equal(one[step], np.concatenate([ranks[0][step], ranks[1][step]]))


def test_iterate_is_batch_after_batch_and_resumes_anywhere(shards):
    loader = make_loader(shards)
    with loader.iterate(40, 8) as batches:
        for number in range(20):
            batch, wanted = next(batches), loader.batch(40 + 8 * number, 8)
            assert np.array_equal(batch.tokens, wanted.tokens)
            assert np.array_equal(batch.labels, wanted.labels)


def running() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "bc2-loader"]


def test_reading_ahead_is_bounded_and_stops_with_the_block(shards, monkeypatch):
    made = []
    real = Loader.batch
    monkeypatch.setattr(Loader, "batch", lambda *a: made.append(a[1]) or real(*a))
    with make_loader(shards).iterate(0, 2, ahead=3) as batches:
        next(batches)
        assert len(running()) == 1
        for _ in range(200):
            if len(made) >= 5:
                break
            threading.Event().wait(0.01)
    assert running() == []
    assert len(made) == 5  # one taken, three ready, one in hand
    with pytest.raises(RuntimeError), make_loader(shards).iterate(0, 2):
        raise RuntimeError
    assert running() == []


def test_errors_of_the_thread_are_raised_in_order(shards):
    batch = make_loader(shards).batch(0, 1)

    def batches() -> Iterator[Batch]:
        yield batch
        yield batch
        raise OSError("disk gone")

    with read_ahead(batches(), 4) as ready:
        assert next(ready) is batch
        assert next(ready) is batch
        with pytest.raises(OSError, match="disk gone"):
            next(ready)
    assert running() == []


def test_the_end_of_the_batches_is_the_end(shards):
    batches = list(heldout_batches(shards, S, 4))
    with read_ahead(iter(batches), 2) as ready:
        assert list(ready) == batches


def test_no_step_waits_while_reading_is_quicker_than_training(shards):
    """Counted, not timed: at every take the queue is full again before the next one."""
    loader = make_loader(shards)
    with loader.iterate(0, 4, ahead=4) as batches:
        waits = 0
        for _ in range(50):
            until = time.monotonic() + 10
            while batches.ready() < 4:  # the step
                assert time.monotonic() < until
                time.sleep(0.0005)
            try:
                batches.take(timeout_s=1e-9)
            except TimeoutError:
                waits += 1
    assert waits == 0


def test_a_stuck_reader_is_not_waited_for(shards, monkeypatch):
    monkeypatch.setattr(module, "_JOIN_S", 0.2)
    batch = make_loader(shards).batch(0, 1)
    release = threading.Event()

    def batches() -> Iterator[Batch]:
        yield batch
        release.wait()
        yield batch

    began = time.monotonic()
    with read_ahead(batches(), 4) as ready:
        assert ready.take(timeout_s=5) is batch
        with pytest.raises(TimeoutError):
            ready.take(timeout_s=0.05)
        (stuck,) = running()
    assert time.monotonic() - began < 5
    assert stuck.daemon
    assert stuck.is_alive()
    release.set()
    stuck.join(5)
    assert not stuck.is_alive()


@pytest.mark.parametrize(("length", "rows"), [(S, 4), (7, 5), (100_000, 3)])
def test_held_out_labels_come_once_each(shards, length, rows):
    sources = shards.sources("heldout")
    seen: dict[str, list[list[int]]] = {source: [] for source in sources}
    batches = list(heldout_batches(shards, length, rows))
    assert all(len(batch.tokens) == rows for batch in batches[:-1])
    for batch in batches:
        assert batch.num_labels == np.count_nonzero(batch.labels != IGNORED)
        for row, source_id in enumerate(batch.source_ids):
            keep = batch.labels[row] != IGNORED
            pairs = np.stack([batch.tokens[row][keep], batch.labels[row][keep]], axis=1)
            seen[sources[source_id]].extend(pairs.tolist())
    for source in sources:
        tokens = shards.window("heldout", source, 0, shards.num_tokens("heldout", source))
        pairs = np.stack([tokens[:-1], tokens[1:]], axis=1)
        assert seen[source] == pairs[tokens[:-1] != shards.eos_id].tolist()


def test_held_out_padding_is_no_document(shards):
    (batch,) = heldout_batches(shards, 100_000, 8)
    n = shards.num_tokens("heldout", "en") - 1
    assert (batch.labels[0, n:] == IGNORED).all()
    assert (batch.tokens[0, n:] == shards.eos_id).all()
    assert batch.max_seqlen < 1000


def test_a_part_of_the_held_out_batches_holds_every_source(shards):
    counts = {s: -(-(shards.num_tokens("heldout", s) - 1) // S) for s in shards.sources("heldout")}
    half = list(heldout_batches(shards, S, 2))[: sum(counts.values()) // 4]
    drawn = np.bincount(np.concatenate([b.source_ids for b in half]))
    for number, count in enumerate(counts.values()):
        assert abs(drawn[number] - count / 2) <= 2


@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_which_windows_are_read_does_not_depend_on_the_batch(shards, most):
    def read(rows):
        batches = list(heldout_batches(shards, S, rows, most=most))
        return np.concatenate([b.tokens for b in batches]), sum(b.num_labels for b in batches)

    tokens, labels = read(1)
    whole = sum(-(-(shards.num_tokens("heldout", s) - 1) // S) for s in shards.sources("heldout"))
    assert len(tokens) == min(most, whole)
    for rows in (2, 3, 8):
        assert np.array_equal(read(rows)[0], tokens)
        assert read(rows)[1] == labels


def test_no_held_out_split(tmp_path, shards):
    shards = TokenShards(shards.root, {**shards.facts, "splits": {"train": {}, "heldout": {}}})
    assert list(heldout_batches(shards, S, 4)) == []


def test_pack_knows_the_edges():
    rows = np.array([[2, 5, 2, 2, 6], [7, 8, IGNORED, IGNORED, IGNORED]])
    batch = module.pack(rows, np.array([0, 0]), eos_id=2)
    assert batch.tokens.tolist() == [[2, 5, 2, 2], [7, 8, 2, 2]]
    assert batch.labels.tolist() == [[-100, 2, -100, -100], [8, -100, -100, -100]]
    assert batch.cu_seqlens.tolist() == [0, 1, 3, 4, 7, 8]
    assert (batch.max_seqlen, batch.num_labels) == (3, 2)


def made(**fields: Any) -> Batch:
    """Two rows of four tokens, with what an algorithm adds."""
    rows = np.array([[3, 5, 2, 4, 6], [7, 8, IGNORED, IGNORED, IGNORED]])
    return replace(pack(rows, np.array([0, 0]), eos_id=2), **fields)


def test_a_batch_has_the_weights_of_its_algorithm_beside_its_own() -> None:
    pairs = made(extra_weights={"pairs": 1})
    assert pairs.weights == {"tokens": 4, "samples": 2, "pairs": 1}
    heavy = made(extra_weights={"pairs": 2.5})
    assert total_weights([pairs, heavy]) == {"tokens": 8, "samples": 4, "pairs": 3.5}
    with pytest.raises(ValueError, match="other weights"):
        total_weights([pairs, made()])


def test_samples_may_be_packed() -> None:
    ids = np.array([[0, 0, 0, 1], [2, 2, IGNORED, IGNORED]])
    reward = np.array([0.5, 1.0, -1.0])
    packed = made(token_fields={SAMPLE: ids}, sample_fields={"r": reward}, packed_samples=3)
    assert packed.weights == {"tokens": 4, "samples": 3}
    with pytest.raises(ValueError, match="there is no token field 'sample'"):
        made(packed_samples=3)
    with pytest.raises(ValueError, match="none of its samples"):
        made(token_fields={SAMPLE: ids})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"token_fields": {"mask": np.zeros((2, 5))}}, r"'mask' has the shape \(2, 5\)"),
        ({"token_fields": {"mask": np.zeros(8)}}, r"'mask' has the shape \(8,\)"),
        ({"sample_fields": {"r": np.zeros(3)}}, r"'r' has the shape \(3,\), for 2 samples"),
        ({"sample_fields": {"r": np.zeros(())}}, r"'r' has the shape \(\), for 2 samples"),
        ({"extra_weights": {"tokens": 3, "samples": 2}}, "may not be called samples, tokens"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**fields)
