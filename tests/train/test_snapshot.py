"""What a stream knows is the same after a checkpoint as before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bc2.train.snapshot import read_stream_state, stream_state_bytes
from bc2.train.stream import StreamState


def test_arrays_of_a_stream_keep_their_shapes_and_values(tmp_path: Path) -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays = {"scalar": np.array(2.5), "one": np.ones(1), "none": np.zeros((0, 3)), "cut": grid.T}
    path = tmp_path / "stream.safetensors"
    path.write_bytes(stream_state_bytes(StreamState({"next": 3}, arrays)))
    found = read_stream_state(path)
    assert found.values == {"next": 3}
    for name, array in arrays.items():
        assert found.arrays[name].shape == array.shape
        np.testing.assert_array_equal(found.arrays[name], array)
