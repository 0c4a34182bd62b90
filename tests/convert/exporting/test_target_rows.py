"""Rows on their way out: as they are, rounded, or changed; and what no type can hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_checkpoints import checkpoint, drawn, shape

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import RowChange, TargetTensor
from bc2.convert.exporting.target_rows import UNIT_ROWS, target_rows
from bc2.errors import DataError
from bc2.registry import Registry

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def written(source: SourceModel, target: TargetTensor) -> torch.Tensor:
    return torch.cat(list(target_rows(source, target)))


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)]
)
def test_rounded_as_torch_rounds(
    home: Path, dtype: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces of seven rows, of which 600 is no multiple.
    monkeypatch.setattr("bc2.convert.exporting.target_rows._AT_ONCE", 7 * 48)
    config = shape()
    state = drawn(config)
    with SourceModel.open(checkpoint(Registry.open(), state=state)) as source:
        for name in (HEAD, TABLE, "model.layers.1.self_attn.W_pack.weight", "model.norm.weight"):
            found = written(source, TargetTensor(name, dtype, tuple(state[name].shape), name))
            assert torch.equal(found, state[name].to(kind))


def test_part_of_the_rows(home: Path) -> None:
    state = drawn(shape())
    name = "model.layers.0.self_attn.W_pack.weight"
    with SourceModel.open(checkpoint(Registry.open(), state=state)) as source:
        found = written(source, TargetTensor("k", "F32", (48, 48), name, first=48))
    assert torch.equal(found, state[name][48:96])


def test_unit_rows_in_float64(home: Path) -> None:
    state = drawn(shape(), dtype=torch.bfloat16)
    with SourceModel.open(checkpoint(Registry.open(), state=state)) as source:
        target = TargetTensor(HEAD, "F32", tuple(state[HEAD].shape), HEAD, change=UNIT_ROWS)
        found = written(source, target)
    raw = state[HEAD].double()
    expected = raw / raw.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-7)


def test_a_change_is_given_whole_blocks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bc2.convert.exporting.target_rows._AT_ONCE", 30 * 48)
    seen: list[int] = []

    def note(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        return rows

    name = "model.layers.0.self_attn.W_pack.weight"
    with SourceModel.open(checkpoint(Registry.open())) as source:
        list(target_rows(source, TargetTensor("q", "F32", (96, 48), name, 0, RowChange(12, note))))
    assert seen == [24, 24, 24, 24]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(home: Path, wrong: float) -> None:
    state = drawn(shape())
    state[TABLE][599, 47] = wrong
    with (
        SourceModel.open(checkpoint(Registry.open(), state=state)) as source,
        pytest.raises(DataError, match="weight holds NaN or infinity"),
    ):
        written(source, TargetTensor(TABLE, "F32", tuple(state[TABLE].shape), TABLE))


def test_what_fp16_cannot_hold_is_refused(home: Path) -> None:
    state = drawn(shape())
    state[TABLE][3, 3] = 70_000.0
    with SourceModel.open(checkpoint(Registry.open(), state=state)) as source:
        target = TargetTensor(TABLE, "F16", tuple(state[TABLE].shape), TABLE)
        with pytest.raises(DataError, match="holds 70000, which is too large for F16") as refused:
            written(source, target)
        assert "bf16" in (refused.value.todo or "")
        written(source, TargetTensor(TABLE, "BF16", tuple(state[TABLE].shape), TABLE))
