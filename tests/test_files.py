"""Writing in place: past the page cache where that is possible, and always the same bytes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2 import files
from bc2.files import BLOCK, InPlace, writing_in_place

Direct = list[tuple[int, int]]


def noise(size: int, seed: int = 0) -> files.Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def cut(data: files.Bytes, marks: list[int]) -> list[files.Bytes]:
    return np.split(data, sorted(mark % (len(data) + 1) for mark in marks))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that little data passes through several rooms, and every whole block is direct."""
    monkeypatch.setattr(files, "ROOM", 2 * BLOCK)
    monkeypatch.setattr(files, "LEAST_DIRECT", BLOCK)


@pytest.fixture
def direct(small, monkeypatch: pytest.MonkeyPatch) -> Direct:
    """Offset and length of each direct write. Any file system will do: nothing is direct."""
    found: Direct = []
    real_open, real_pwrite = os.open, os.pwrite
    fds: set[int] = set()

    def opened(path: Path, flags: int, *rest: int) -> int:
        fd = real_open(path, flags & ~os.O_DIRECT, *rest)
        (fds.add if flags & os.O_DIRECT else fds.discard)(fd)
        return fd

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if fd in fds:
            assert offset % BLOCK == len(data) % BLOCK == 0
            assert np.frombuffer(data, np.uint8).ctypes.data % BLOCK == 0
            found.append((offset, len(data)))
        return real_pwrite(fd, data, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", pwrite)
    return found


def blank(path: Path, size: int) -> Path:
    path.write_bytes(bytes(size))
    return path


@settings(max_examples=200, deadline=None)
@given(
    runs=st.lists(
        st.tuples(
            st.integers(0, 2 * BLOCK),
            st.integers(0, 6 * BLOCK) | st.integers(0, 6).map(lambda n: n * BLOCK),
            st.lists(st.integers(0, 6 * BLOCK), max_size=4),
        ),
        max_size=5,
    ),
    rest=st.integers(0, BLOCK),
    order=st.randoms(use_true_random=False),
)
def test_any_runs_put_their_bytes_where_they_belong(runs, rest, order) -> None:
    at, planned = 0, []
    for seed, (gap, size, marks) in enumerate(runs):
        planned.append((at + gap, noise(size, seed), marks))
        at += gap + size
    expected = bytearray(at + rest)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROOM", 2 * BLOCK)
        patch.setattr(files, "LEAST_DIRECT", BLOCK)
        path = blank(Path(folder) / "file", at + rest)
        order.shuffle(planned)
        with writing_in_place(path) as out:
            for begin, data, marks in planned:
                seen = bytearray()
                out.run(begin, cut(data, marks), seen.extend)
                assert seen == data.tobytes()
                expected[begin : begin + len(data)] = data.tobytes()
        assert path.read_bytes() == bytes(expected)


def test_whole_blocks_are_direct_and_the_rest_is_not(tmp_path: Path, direct: Direct) -> None:
    path = blank(tmp_path / "file", 5 * BLOCK)
    data = noise(4 * BLOCK)
    with writing_in_place(path) as out:
        out.run(10, [data])
    assert direct == [(BLOCK, BLOCK), (2 * BLOCK, 2 * BLOCK)]
    assert path.read_bytes() == bytes(10) + data.tobytes() + bytes(BLOCK - 10)


def test_short_runs_are_not_worth_waiting_for(tmp_path: Path, direct: Direct, monkeypatch) -> None:
    monkeypatch.setattr(files, "LEAST_DIRECT", 2 * BLOCK)
    path = blank(tmp_path / "file", 2 * BLOCK)
    with writing_in_place(path) as out:
        out.run(0, [noise(2 * BLOCK - 1)])
    assert direct == []
    assert path.read_bytes()[:-1] == noise(2 * BLOCK - 1).tobytes()


def refuse_to_open(patch: pytest.MonkeyPatch, code: int) -> None:
    real = os.open

    def opened(path: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *rest)

    patch.setattr(os, "open", opened)


def refuse_to_write(patch: pytest.MonkeyPatch, code: int) -> None:
    def put(self: InPlace, direct: int, at: int, data: memoryview) -> int:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(os, "pwrite", _raising(code))
            return real(self, direct, at, data)

    real = InPlace._put_blocks
    patch.setattr(InPlace, "_put_blocks", put)


def _raising(code: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("refuse", [refuse_to_open, refuse_to_write])
def test_without_direct_io_it_is_written_as_usual(tmp_path, small, monkeypatch, refuse) -> None:
    refuse(monkeypatch, errno.EINVAL)
    path = blank(tmp_path / "file", 7 * BLOCK)
    data = noise(7 * BLOCK)
    with writing_in_place(path) as out:
        out.run(0, [data])
        assert out._direct is None
    assert path.read_bytes() == data.tobytes()


@pytest.mark.parametrize("refuse", [refuse_to_open, refuse_to_write])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_fails_is_an_error(tmp_path, small, monkeypatch, refuse, code: int) -> None:
    refuse(monkeypatch, code)
    path = blank(tmp_path / "file", 3 * BLOCK)
    with pytest.raises(OSError) as caught, writing_in_place(path) as out:  # noqa: PT011
        out.run(0, [noise(3 * BLOCK)])
    assert caught.value.errno == code


def test_what_direct_io_leaves_over_is_written_too(tmp_path, small, monkeypatch) -> None:
    def half(self: InPlace, direct: int, at: int, data: memoryview) -> int:
        return os.pwrite(self._fd, data[:100], at)

    monkeypatch.setattr(InPlace, "_put_blocks", half)
    path = blank(tmp_path / "file", 5 * BLOCK)
    with writing_in_place(path) as out:
        out.run(1, [noise(4 * BLOCK)])
    assert path.read_bytes()[1 : 1 + 4 * BLOCK] == noise(4 * BLOCK).tobytes()


def test_it_is_synced_only_when_all_was_written(tmp_path: Path, monkeypatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = blank(tmp_path / "file", 4)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="stop"), writing_in_place(path) as out:
        raise ValueError("stop")
    assert synced == []
    with writing_in_place(path) as out:
        out.run(0, [noise(4)])
    assert len(synced) == 1
    assert set(os.listdir("/proc/self/fd")) == before


# -- what may be written -------------------------------------------------------------------


def test_what_comes_and_goes_can_be_written(tmp_path: Path) -> None:
    """As the files beside SQLite's do, while other processes open and close the index."""
    path, ended = tmp_path / "index.sqlite-wal", threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            path.touch()
            path.unlink()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        assert {files.why_not_writable(path) for _ in range(20_000)} == {None}
    finally:
        ended.set()
        other.join()


def test_what_is_gone_when_it_is_looked_at_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "index.sqlite-wal", os.access
    path.touch()

    def access(name: Path, *given: Any, **named: Any) -> bool:
        path.unlink(missing_ok=True)
        return plain(name, *given, **named)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "supports_effective_ids", {access})
    assert files.why_not_writable(path) is None
