"""Predictions beside what runs took: what is stored, and what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.pipeline.table import algorithm_named
from bc2.plan.history import memory_records
from bc2.recipe import Recipe
from bc2.train.logs.runs import RunFolder
from bc2.train.memory.estimate import MEMORY_PARTS
from bc2.train.memory.measured import Footprint
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.training_settings import TrainingSettings

ROW = {
    "event": "memory", "time": 1.0, "elapsed": 1.0, "step": 3, "measure": "host resident",
    "predicted": {"weights": 60, "total": 90}, "measured": 100, "layout": {"zero": 2, "ranks": 4},
}  # fmt: skip


def run_with(folder: Path, name: str, *rows: dict[str, Any]) -> RunFolder:
    (folder / name).mkdir()
    (folder / name / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RunFolder(folder / name)


def test_each_attempt_that_ended_is_a_line(tmp_path: Path) -> None:
    start = {"event": "start", "time": 0.0, "step": 0}
    runs = [
        run_with(tmp_path, "a-1", start, ROW, start, {**ROW, "measured": 80}),
        run_with(tmp_path, "b-2", start),
    ]
    first, second = memory_records(runs)
    assert (first.run, first.layout, first.predicted) == ("a-1", "zero=2 ranks=4", 90)
    assert first.error == pytest.approx(-0.1)
    assert second.error == pytest.approx(0.125)
    assert second.as_json()["measured"] == 80


def test_a_footprint_has_the_parts_and_what_was_touched_since() -> None:
    model = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2
    )
    config = PretrainConfig(
        length="1 steps", batch_tokens=128, micro_batch=1, sequence_length=64, precision="fp32",
        device="cpu",
    )  # fmt: skip
    settings = TrainingSettings(
        "x", algorithm_named("pretrain"), model, config, ParallelConfig(), Recipe("x", "", {}, ())
    )
    footprint = Footprint(settings, 1)
    touched = bytearray(b"x" * 64_000_000)
    row = footprint.row()
    assert row["measured"] >= len(touched)
    predicted = row["predicted"]
    assert set(predicted) == {*MEMORY_PARTS, "snapshot", "total"}
    assert predicted["total"] == sum(predicted[part] for part in (*MEMORY_PARTS, "snapshot"))
    assert predicted["snapshot"] == 12 * model.num_params()
    assert row["layout"] == {"ranks": 1, "micro_batch": 1, "activation_checkpointing": 0}
