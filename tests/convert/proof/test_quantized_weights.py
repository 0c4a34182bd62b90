"""Files in bitsandbytes' formats, made here by their definitions, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bc2.convert.proof.quantized_weights import QuantizedWeight, quantized_weights
from bc2.convert.proof.written_tensors import written_tensors

LAYER = "model.layers.0.mlp.up_proj."

#: NF4's levels (arXiv 2305.14314, appendix E).
LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def drawn(rows: int, columns: int) -> np.ndarray:
    return (
        np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float16).astype(np.float32)
    )


def int8(weight: np.ndarray) -> dict[str, torch.Tensor]:
    largest = np.abs(weight).max(1)
    numbers = np.rint(weight * 127 / largest[:, None]).astype(np.int8)
    return {
        f"{LAYER}weight": torch.from_numpy(numbers), f"{LAYER}SCB": torch.from_numpy(largest),
        f"{LAYER}weight_format": torch.tensor(0, dtype=torch.uint8),
    }  # fmt: skip


def nf4(weight: np.ndarray) -> dict[str, torch.Tensor]:
    """One number and one scale at a time."""
    flat, largest, chosen = weight.reshape(-1), [], []
    for at in range(0, len(flat), 64):
        block = flat[at : at + 64]
        largest.append(np.abs(block).max())
        chosen += [int(np.abs(LEVELS - number / largest[-1]).argmin()) for number in block]
    middle = float(np.mean(largest))
    steps, scales, kept = np.linspace(-1, 1, 256).astype(np.float32), [], []
    for at in range(0, len(largest), 256):
        some = np.array(largest[at : at + 256]) - middle
        scales.append(np.abs(some).max())
        kept += [int(np.abs(steps - one / scales[-1]).argmin()) for one in some]
    chosen += [7] * (len(chosen) % 2)
    packed = [high * 16 + low for high, low in zip(chosen[::2], chosen[1::2], strict=True)]
    state = {
        "quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": weight.shape,
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": middle,
    }  # fmt: skip
    name = f"{LAYER}weight"
    return {
        name: torch.tensor(packed, dtype=torch.uint8)[:, None],
        f"{name}.absmax": torch.tensor(kept, dtype=torch.uint8),
        f"{name}.quant_map": torch.from_numpy(LEVELS),
        f"{name}.nested_absmax": torch.tensor(np.array(scales, np.float32)),
        f"{name}.nested_quant_map": torch.from_numpy(steps),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


MAKERS = {"int8": int8, "nf4": nf4}


def opened(folder: Path, tensors: dict[str, torch.Tensor]) -> QuantizedWeight:
    save_file({"model.norm.weight": torch.ones(4), **tensors}, folder / "model.safetensors")
    found = quantized_weights(written_tensors(folder, ["model.safetensors"])[0])
    assert found.keys() == {f"{LAYER}weight"}
    weight = found[f"{LAYER}weight"]
    assert weight.parts == tensors.keys()
    return weight


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("shape", [(64, 64), (130, 48), (65, 7), (600, 96)])
def test_rows_are_near_what_they_stand_for(
    kind: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    exact = drawn(*shape)
    weight = opened(tmp_path, MAKERS[kind](exact))
    assert weight.shape == shape
    whole = weight.rows(0, shape[0])
    step = np.abs(exact).max() * (0.5 / 127 if kind == "int8" else 0.18)
    assert np.abs(whole - exact).max() <= step
    assert np.abs(whole - exact).max() > step / 20, "as if nothing were quantised"
    assert np.array_equal(weight.rows(3, 20), whole[3:23])
    assert not weight.far(0, exact).any()
    assert not weight.far(0, exact[:64]).any()


@pytest.mark.parametrize("kind", MAKERS)
def test_another_level_is_seen(kind: str, tmp_path: Path) -> None:
    exact = drawn(64, 64)
    tensors = MAKERS[kind](exact)
    tensors[f"{LAYER}weight"].view(-1)[1000] ^= 0x10
    far = opened(tmp_path, tensors).far(0, exact)
    place = 1000 if kind == "int8" else 2000
    assert np.flatnonzero(far).tolist() == [place]


@pytest.mark.parametrize(
    ("kind", "part", "place"),
    [
        ("int8", "SCB", 5), ("int8", "weight_format", 0), ("nf4", "weight.absmax", 9),
        ("nf4", "weight.nested_absmax", 0),
    ],
)  # fmt: skip
def test_another_scale_is_seen(kind: str, part: str, place: int, tmp_path: Path) -> None:
    exact = drawn(64, 64)
    tensors = MAKERS[kind](exact)
    flat = tensors[f"{LAYER}{part}"].view(-1)
    flat[place] = flat[place] * 1.05 if flat.dtype == torch.float32 else flat[place] ^ 0x10
    assert opened(tmp_path, tensors).far(0, exact).any()
