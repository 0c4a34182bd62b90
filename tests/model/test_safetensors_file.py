"""The reader against safetensors' own: the same tensors, and the same files refused."""

from __future__ import annotations

import json
import struct
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bc2.errors import IntegrityError
from bc2.model import safetensors_file
from bc2.model.safetensors_file import DTYPES, SafetensorsReader, TensorSpan

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bytes, NaNs included; of a bool those that it can have."""
    made = torch.empty(shape, dtype=dtype)
    data = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, made.nbytes)
    made.view(-1).view(torch.uint8).copy_(torch.from_numpy(data))
    return made


def raw(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, st.tuples(st.sampled_from([*DTYPES.values()]), shapes), max_size=6))
def test_tensors_are_those_that_safetensors_reads(
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]],
) -> None:
    made = {n: random_tensor(*kind, seed) for seed, (n, kind) in enumerate(kinds.items())}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        save_file(made, path, metadata={"format": "pt"})
        with path.open("rb", buffering=0) as stream:
            reader = SafetensorsReader(stream, path)
            found = dict(reader.tensors())
            assert stream.read() == b""
        own = load_file(path)
    assert list(found) == list(reader.spans)
    ends = [span.end for span in reader.spans.values()]
    assert ends == sorted(ends)
    assert {n: raw(t) for n, t in found.items()} == {n: raw(t) for n, t in own.items()}


@settings(max_examples=60, deadline=None)
@given(
    stored=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    asked=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    sizes=st.lists(st.integers(0, 200), min_size=1, max_size=4),
)
def test_a_dtype_is_that_of_torch_whatever_the_chunks(
    stored: torch.dtype, asked: torch.dtype, sizes: list[int]
) -> None:
    draw = torch.Generator().manual_seed(len(sizes))
    made = {f"t{n}": torch.randn(n, generator=draw).to(stored) for n in sizes}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(safetensors_file, "PASSED_ON", 64)
        patched.setattr(safetensors_file, "CHUNK", 24)
        path = Path(folder) / "file"
        save_file(made, path)
        with path.open("rb", buffering=0) as stream:
            found = dict(SafetensorsReader(stream, path).tensors(dtype=asked))
    assert {n: raw(t) for n, t in found.items()} == {n: raw(t.to(asked)) for n, t in made.items()}


class Grudging(BytesIO):
    """Gives three bytes at a time, as a pipe or a network file system may."""

    def readinto(self, buffer: Any) -> int:
        return super().readinto(memoryview(buffer)[:3])


def test_a_stream_may_give_less_than_was_asked_for(tmp_path: Path) -> None:
    made = {"a": torch.arange(5.0), "b": torch.arange(7, dtype=torch.uint8)}
    save_file(made, tmp_path / "file")
    stream: Any = Grudging((tmp_path / "file").read_bytes())
    found = dict(SafetensorsReader(stream, tmp_path / "file").tensors())
    assert {n: raw(t) for n, t in found.items()} == {n: raw(t) for n, t in made.items()}


def ours(path: Path) -> dict[str, TensorSpan] | None:
    with path.open("rb", buffering=0) as stream:
        try:
            return SafetensorsReader(stream, path).spans
        except IntegrityError as error:
            said = error
    assert said.what.startswith("not a complete safetensors file: ")
    assert said.where == str(path)
    return None


def theirs(path: Path) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except SafetensorError:
        return None


def agreed(path: Path) -> dict[str, TensorSpan] | None:
    found = ours(path)
    spans = None if found is None else {n: (s.dtype, s.shape) for n, s in found.items()}
    assert spans == theirs(path)
    return found


def write(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(first: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - first], "data_offsets": [first, end], **changes}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, b""),
        ({"w": entry(0, 2)}, b"ab"),
        ({"b": entry(2, 3), "a": entry(0, 2), "none": entry(2, 2)}, b"abc"),
        ({"scalar": entry(0, 1, shape=[])}, b"a"),
        (b'  {"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  ', b"ab"),
    ],
)
def test_headers_that_safetensors_takes(tmp_path: Path, header: Any, data: bytes) -> None:
    write(tmp_path / "file", header, data)
    assert agreed(tmp_path / "file") is not None


BROKEN: dict[str, tuple[Any, bytes]] = {
    "bytes after the last tensor": ({"w": entry(0, 2)}, b"abc"),
    "too few bytes": ({"w": entry(0, 2)}, b"a"),
    "a gap before the first": ({"w": entry(1, 3)}, b"abc"),
    "a gap between": ({"v": entry(0, 1), "w": entry(2, 3)}, b"abc"),
    "an overlap": ({"v": entry(0, 2), "w": entry(1, 3)}, b"abc"),
    "another size": ({"w": entry(0, 2, shape=[3])}, b"ab"),
    "an unknown dtype": ({"w": entry(0, 2, dtype="U9")}, b"ab"),
    "a negative size": ({"w": entry(0, 2, shape=[-2])}, b"ab"),
    "a broken size": ({"w": entry(0, 2, shape=[2.0])}, b"ab"),
    "three places": ({"w": entry(0, 2, data_offsets=[0, 2, 2])}, b"ab"),
    "no shape": ({"w": {"dtype": "U8", "data_offsets": [0, 2]}}, b"ab"),
    "a list": ([], b""),
    "no JSON": (b"{", b""),
    "no UTF-8": (b'{"\xff":1}', b""),
}


@pytest.mark.parametrize(("header", "data"), BROKEN.values(), ids=BROKEN.keys())
def test_files_that_safetensors_refuses(tmp_path: Path, header: Any, data: bytes) -> None:
    write(tmp_path / "file", header, data)
    assert agreed(tmp_path / "file") is None


def test_a_header_longer_than_its_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for length in (3, 1 << 40, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        assert agreed(path) is None


def test_a_header_as_long_as_safetensors_never_writes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 1 << 40))
        stream.truncate((1 << 40) + 8)  # no block of it is on the disk
    assert ours(path) is None


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_of_a_header_or_a_cut_is_refused_as_by_safetensors(
    data: st.DataObject,
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        save_file({"a": torch.ones(4, 3), "b": torch.ones(5, dtype=torch.uint8)}, path)
        content = bytearray(path.read_bytes())
        length = 8 + struct.unpack("<Q", content[:8])[0]
        content[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.sampled_from([len(content), None, 9, 90, -1]))])
        agreed(path)


def test_a_file_that_becomes_shorter_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_file({"a": torch.ones(1000)}, path)
    with path.open("rb", buffering=0) as stream:
        reader = SafetensorsReader(stream, path)
        path.write_bytes(path.read_bytes()[:-4])
        with pytest.raises(IntegrityError, match="became shorter") as info:
            dict(reader.tensors())
    assert info.value.where == str(path)
