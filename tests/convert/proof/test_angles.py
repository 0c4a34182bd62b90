"""Angles as llama.cpp rounds them: the same ones, but for their last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bc2.convert.proof.angles import chained_table, rounded_angles
from bc2.model import transformer
from bc2.model.rope_scaling import RopeScaling
from bc2.model.rotary import rotary_table

SCALINGS = [
    None,
    RopeScaling(kind="linear", factor=4.0),
    RopeScaling(kind="llama3", factor=8.0, original_context=64),
    RopeScaling(kind="yarn", factor=4.0, original_context=64),
]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_they_are_the_angles(scaling: RopeScaling | None) -> None:
    positions = torch.arange(600)
    for ours, theirs in zip(
        rotary_table(positions, 64, 10000.0, scaling),
        chained_table(positions, 64, 10000.0, scaling),
        strict=True,
    ):
        difference = (ours - theirs).abs()
        assert difference[:10].max() < 2e-6
        assert 1e-6 < difference.max() < 5e-4


def test_each_is_made_of_the_one_before() -> None:
    cos, _ = chained_table(torch.tensor([500]), 8, 10000.0)
    step = np.float32(10000.0) ** np.float32(-0.25)
    angle = np.float32(500)
    for pair in range(4):
        assert cos[0, 0, pair].item() == pytest.approx(np.cos(np.float64(angle)), abs=1e-7)
        angle = np.float32(angle * step)


def test_models_have_them_for_a_while() -> None:
    with rounded_angles("chained"):
        assert transformer.rotary_table is chained_table
    assert transformer.rotary_table is rotary_table
    with rounded_angles("exact"):
        assert transformer.rotary_table is rotary_table
