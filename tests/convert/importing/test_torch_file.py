"""Files of torch.save that are damaged or made to harm: an error, soon, and nothing is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bc2.convert.importing.stored_tensors import torch_tensors_of
from bc2.errors import DataError


def state() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}


def saved(data: Any) -> bytes:
    made = io.BytesIO()
    torch.save(data, made)
    return made.getvalue()


def with_pickle(pickled: bytes, name: str = "data.pkl") -> bytes:
    """A file of torch.save with another pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(state()))) as old, zipfile.ZipFile(made, "w") as new:
        for member in old.namelist():
            if member.endswith("data.pkl"):
                new.writestr(member.replace("data.pkl", name), pickled)
            else:
                new.writestr(member, old.read(member))
    return made.getvalue()


class Made:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("data", [state(), OrderedDict(state())], ids=["dict", "OrderedDict"])
def test_where_the_numbers_lie(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(saved(data))
    found = torch_tensors_of(path)
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        "a.weight": ("F32", (2, 3)), "b": ("BF16", (5,)),
    }  # fmt: skip
    for name, tensor in data.items():
        raw = b"".join(found[name].chunks())
        assert raw == tensor.view(torch.uint8).numpy().tobytes()


BOMBS = {
    "bytearray": Made(bytearray, 2**36),
    "bytearray beyond counting": Made(bytearray, 2**60),
    "tensor": Made(torch.Tensor, 2**36),
    "set": Made(set, range(10**9)),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_all_memory(tmp_path: Path, name: str, protocol: int) -> None:
    path = tmp_path / "file.bin"
    pickled = pickle.dumps({"a": BOMBS[name]}, protocol)
    for member in ("data.pkl", "DATA.PKL"):  # torch reads both
        path.write_bytes(with_pickle(pickled, member))
        with pytest.raises(DataError, match="refused"):
            torch_tensors_of(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_never_lead_outside_the_file(
    tmp_path: Path, places: list[tuple[int, int]]
) -> None:
    raw = bytearray(saved(state()))
    for place, value in places:
        raw[place % len(raw)] = value
    path = tmp_path / "file.bin"
    path.write_bytes(raw)
    try:
        found = torch_tensors_of(path)
    except DataError:
        return
    for one in found.values():
        assert 0 <= one.offset <= one.offset + one.size <= len(raw)
