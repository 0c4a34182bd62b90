"""Compressed files: several members and frames, and every way to be cut short."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.errors import DataError, RunFailed
from bc2.streams import ZstdStream, numbered_lines, open_bytes

BLOCKS = [b"one\n" * 5000, os.urandom(300_000), b"", b"three\n"]


def zstd_frames(blocks: list[bytes]) -> bytes:
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    return b"".join(compressor.compress(block) for block in blocks)


def read(path: Path) -> bytes:
    with open_bytes(path) as stream:
        return stream.read()


def test_every_gzip_member_is_read(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(b"".join(gzip.compress(block) for block in BLOCKS))
    assert read(path) == b"".join(BLOCKS)


def test_every_zstd_frame_is_read_and_skippable_frames_are_skipped(tmp_path):
    path = tmp_path / "x.zst"
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    path.write_bytes(zstd_frames(BLOCKS[:2]) + skippable + zstd_frames(BLOCKS[2:]))
    assert read(path) == b"".join(BLOCKS)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_file_cut_anywhere_is_never_taken_for_a_whole_one(tmp_path, suffix):
    blocks = [b"line\n" * 40, os.urandom(50)]
    whole = zstd_frames(blocks) if suffix == ".zst" else b"".join(map(gzip.compress, blocks))
    ends = {len(zstd_frames(blocks[:1]) if suffix == ".zst" else gzip.compress(blocks[0]))}
    path = tmp_path / f"x{suffix}"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length in ends:  # between two members: a whole file of one
            assert read(path) == blocks[0]
            continue
        with pytest.raises(DataError, match="damaged or cut short") as caught:
            read(path)
        assert caught.value.where == str(path)


def windowed(data: bytes, log: int) -> bytes:
    """A frame with a window of 2**`log` bytes, which does not say how long it is."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return frame.compress(data) + frame.flush()


@pytest.mark.parametrize("log", [27, 28, 31])
def test_any_window_of_zstd_is_read(tmp_path, log):
    path = tmp_path / "x.zst"
    path.write_bytes(zstd_frames([b"one"]) + windowed(b"two", log))
    assert zstandard.get_frame_parameters(windowed(b"two", log)).window_size == 1 << log
    assert read(path) == b"onetwo"


def test_a_window_that_zstd_has_not_is_named(tmp_path):
    path = tmp_path / "x.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([30 << 3]) + b"\x01\x00\x00")
    with pytest.raises(DataError, match="a window of more than 2,147,483,648 bytes") as caught:
        read(path)
    assert caught.value.where == str(path)


def test_a_window_for_which_there_is_no_memory_is_named(tmp_path):
    path = tmp_path / "x.zst"
    path.write_bytes(windowed(b"text", 31))
    code = (
        "import pathlib, resource, sys\n"
        "from bc2.streams import open_bytes\n"
        "with open_bytes(pathlib.Path(sys.argv[1])) as stream:\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "    stream.read()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "not enough memory for the window" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("before", [b"", b"first "])
def test_a_dictionary_is_named(tmp_path, before):
    samples = [f"sample {i} of some words".encode() * 3 for i in range(1000)]
    words = zstandard.train_dictionary(2000, samples)
    frame = zstandard.ZstdCompressor(dict_data=words).compress(samples[5])
    path = tmp_path / "x.zst"
    path.write_bytes((zstd_frames([before]) if before else b"") + frame)
    with pytest.raises(DataError, match=f"a dictionary, whose ID is {words.dict_id()}") as caught:
        read(path)
    assert "zstd -d -D" in str(caught.value.todo)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_flipped_bytes_are_found(tmp_path, suffix):
    data = os.urandom(3000)
    whole = bytearray(zstd_frames([data]) if suffix == ".zst" else gzip.compress(data))
    path = tmp_path / f"x{suffix}"
    whole[1500] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="damaged"):
        read(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_garbage_after_the_end_is_found(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    whole = zstd_frames([b"text"]) if suffix == ".zst" else gzip.compress(b"text")
    path.write_bytes(whole + b"garbage")
    with pytest.raises(DataError, match="damaged"):
        read(path)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.binary(max_size=2000), max_size=5),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=20),
)
def test_zstd_stream_reads_in_any_sizes(blocks, sizes):
    stream = ZstdStream(io.BytesIO(zstd_frames(blocks)))
    got = b""
    for number in range(10**6):
        chunk = stream.read(sizes[number % len(sizes)])
        if not chunk:
            break
        got += chunk
    assert got == b"".join(blocks)


def test_lines_are_numbered_without_ends_and_marks():
    mark = b"\xef\xbb\xbf"  # a second one is where files were joined
    stream = io.BytesIO(mark + mark + b"one\r\n\n" + mark + b"two\nthree")
    assert [(n, line) for n, line, _ in numbered_lines(stream)] == [
        (1, b"one"),
        (2, b""),
        (3, b"two"),
        (4, b"three"),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b and b"\r" not in b)))
def test_long_lines_are_named_and_cost_only_themselves(lines):
    limit = 12
    stream = io.BytesIO(b"".join(line + b"\n" for line in lines))
    expected = [(i, None if len(x) > limit else x) for i, x in enumerate(lines, 1)]
    got = [(number, line) for number, line, _ in numbered_lines(stream, limit)]
    if any(line.startswith(b"\xef\xbb\xbf") for line in lines):
        return
    assert got == expected


def test_a_missing_file_and_a_forbidden_one(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.txt")
    path = tmp_path / "x.txt"
    path.write_bytes(b"x")

    def deny(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", deny)  # root ignores modes
    with pytest.raises(RunFailed, match="permission denied"):
        read(path)
