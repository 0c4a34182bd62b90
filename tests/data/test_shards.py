"""Windows across shard borders against one flat array; damage is found at opening."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data import shards as module
from bc2.data.shards import TokenShards, token_dtype
from bc2.errors import DataError, IntegrityError, TooManyOpenFiles


def make(root: Path, shards: dict[str, list[list[int]]], vocab_size: int = 1000) -> Path:
    """Shards of the training split, by source; EOS is 2."""
    sources = {}
    for source, arrays in shards.items():
        entries = []
        (root / "train" / source).mkdir(parents=True, exist_ok=True)
        for number, ids in enumerate(arrays):
            file = f"train/{source}/shard-{number:05d}.bin"
            np.array(ids, token_dtype(vocab_size)).tofile(root / file)
            documents = ids.count(2)
            entries.append({"file": file, "tokens": len(ids), "documents": documents, "bytes": 9})
        totals = {u: sum(e[u] for e in entries) for u in ("tokens", "documents", "bytes")}
        sources[source] = {**totals, "shards": entries}
    index = {
        "dtype": token_dtype(vocab_size).str,
        "vocab_size": vocab_size,
        "eos_id": 2,
        "tokenizer": "digest",
        "splits": {"train": sources, "heldout": {}},
    }
    (root / "tokens.json").write_text(json.dumps(index))
    return root


@settings(max_examples=40, deadline=None)
@given(
    arrays=st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=20), min_size=1, max_size=6),
    vocab_size=st.sampled_from([1000, 125_696]),
    data=st.data(),
)
def test_windows_are_slices_of_one_array(tmp_path_factory, arrays, vocab_size, data):
    root = make(tmp_path_factory.mktemp("s"), {"a": arrays}, vocab_size)
    flat = [i for ids in arrays for i in ids]
    shards = TokenShards.open(root)
    assert shards.num_tokens("train", "a") == len(flat)
    start = data.draw(st.integers(0, len(flat)))
    length = data.draw(st.integers(0, len(flat) - start))
    window = shards.window("train", "a", start, length)
    assert window.tolist() == flat[start : start + length]
    assert window.dtype == (np.uint16 if vocab_size == 1000 else np.uint32)
    for bad in ((-1, 1), (0, len(flat) + 1), (len(flat), 1)):
        with pytest.raises(IndexError):
            shards.window("train", "a", *bad)


def test_ids_above_sixteen_bits(tmp_path):
    shards = TokenShards.open(make(tmp_path, {"a": [[125_695, 65_536, 2]]}, 125_696))
    assert shards.window("train", "a", 0, 3).tolist() == [125_695, 65_536, 2]


def test_a_window_is_a_copy(tmp_path):
    shards = TokenShards.open(make(tmp_path, {"a": [[5, 6, 2]]}))
    shards.window("train", "a", 0, 3)[:] = 0
    assert shards.window("train", "a", 0, 3).tolist() == [5, 6, 2]


def test_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_OPEN", 3)
    arrays = [[number] * 4 for number in range(40)]
    shards = TokenShards.open(make(tmp_path, {"a": arrays}))
    assert shards.window("train", "a", 0, 160).tolist() == [i for ids in arrays for i in ids]
    assert len(open_below(tmp_path)) == 3
    del shards
    assert open_below(tmp_path) == []


def open_below(root: Path) -> list[str]:
    """Files that this process holds open below a directory."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor of this listing
            links.append(os.readlink(entry))
    return [link for link in links if link.startswith(str(root))]


def test_a_file_is_not_closed_under_a_reader(tmp_path, monkeypatch):
    """More threads than files may be open: each must read its own shard all the same."""
    monkeypatch.setattr(module, "_OPEN", 1)
    sources = {f"s{number}": [[number] * 500] for number in range(6)}
    shards = TokenShards.open(make(tmp_path, sources))
    wrong: list[object] = []

    def read(number: int) -> None:
        for step in range(400):
            at = (number + step) % 6
            try:
                window = shards.window("train", f"s{at}", step, 100)
                wrong.extend(set(window.tolist()) - {at})
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(open_below(tmp_path)) == 1


def test_a_shard_that_shrinks_while_it_is_read(tmp_path):
    """Of a mapped file the kernel would kill the process."""
    shards = TokenShards.open(make(tmp_path, {"a": [[5] * 5000, [7] * 5000]}))
    path = tmp_path / "train/a/shard-00001.bin"
    assert shards.window("train", "a", 4999, 2).tolist() == [5, 7]
    os.truncate(path, 2000)
    assert shards.window("train", "a", 5999, 1).tolist() == [7]
    with pytest.raises(DataError, match="wanted 40 bytes at 1980, got 20") as caught:
        shards.window("train", "a", 5990, 20)
    assert (caught.value.where, caught.value.exit_code) == (str(path), 3)
    with pytest.raises(DataError, match="wanted 8 bytes at 8000, got 0"):
        shards.window("train", "a", 9000, 4)


def test_a_shard_that_vanishes(tmp_path):
    """An open file lives on; one that must be opened is named."""
    shards = TokenShards.open(make(tmp_path, {"a": [[5] * 10], "b": [[7] * 10]}))
    assert shards.window("train", "a", 0, 2).tolist() == [5, 5]
    for source in "ab":
        (tmp_path / f"train/{source}/shard-00000.bin").unlink()
    assert shards.window("train", "a", 8, 2).tolist() == [5, 5]
    with pytest.raises(DataError, match="gone") as caught:
        shards.window("train", "b", 0, 2)
    assert caught.value.where == str(tmp_path / "train/b/shard-00000.bin")


def test_an_error_of_the_disk(tmp_path):
    shards = TokenShards.open(make(tmp_path, {"a": [[5] * 10]}))
    path = tmp_path / "train/a/shard-00000.bin"
    path.unlink()
    path.mkdir()  # opens, and reading it fails
    with pytest.raises(DataError, match="cannot read the shard: is a directory") as caught:
        shards.window("train", "a", 0, 2)
    assert caught.value.where == str(path)


def test_unknown_sources(tokens):
    shards = TokenShards.open(tokens)
    with pytest.raises(DataError, match="there are: en"):
        shards.num_tokens("train", "enn")
    assert shards.sources("heldout") == ["en", "zh"]


@pytest.mark.parametrize("damage", ["short", "long", "gone"])
def test_a_shard_of_another_size(tmp_path, damage):
    root = make(tmp_path, {"a": [[5, 6, 2], [7, 2]]})
    path = root / "train/a/shard-00001.bin"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if damage == "short" else b"x" * 5)
    with pytest.raises(IntegrityError) as caught:
        TokenShards.open(root)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("index", [None, "", "{}", "[]", '{"splits": 3}'])
def test_what_is_no_shards(tmp_path, index):
    if index is not None:
        (tmp_path / "tokens.json").write_text(index)
    with pytest.raises(DataError, match="no token shards"):
        TokenShards.open(tmp_path)


def test_shards_that_are_kept_open_make_room_where_no_file_is_left(tmp_path: Path) -> None:
    shards = TokenShards.open(make(tmp_path, {"a": [[5, 2]], "b": [[6, 2]]}))
    shards.window("train", "a", 0, 2)
    others = TokenShards.open(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        assert shards.window("train", "b", 0, 2).tolist() == [6, 2]
        assert shards.window("train", "a", 0, 2).tolist() == [5, 2]
        with pytest.raises(TooManyOpenFiles, match=f"may have {free} open"):
            others.window("train", "a", 0, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
