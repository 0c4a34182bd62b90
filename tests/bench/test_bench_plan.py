"""What a benchmark settles before it starts its contenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bc2.bench import bench_plan
from bc2.bench.bench_plan import make_bench_plan
from bc2.recipe import load
from bc2.train.micro_batch import Choice
from bc2.train.training_settings import TrainingSettings

SHAPE = """\
name = "shape"
[model]
vocab_size = 256
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 2
context_length = 128
[pretrain]
length = "10 steps"
batch_tokens = 1024
micro_batch = "auto"
sequence_length = 128
precision = "fp32"
device = "cpu"
[pretrain.schedule]
warmup = "2 steps"
"""


def test_an_auto_micro_batch_is_chosen_once_for_all_contenders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def choose(settings: TrainingSettings) -> Choice:
        asked.append((settings.training.device, settings.training.precision))
        return Choice(2, 1000, 5000, again=False)

    monkeypatch.setattr(bench_plan, "choose_micro_batch", choose)
    (tmp_path / "shape.toml").write_text(SHAPE)
    plan = make_bench_plan(
        load(tmp_path / "shape.toml"), steps=1, rounds=1, against="hf", peers="fp32-eager",
        ours=None, layouts=(), checkpointing=None, peer_environment="same", documents=0,
        checkpoint=False,
    )  # fmt: skip
    assert asked == [("cpu", "fp32")]
    assert len(plan.contenders) == 2
    assert {spec.training.micro_batch for spec in plan.contenders} == {2}
    assert str(choose(plan.contenders[0].settings)) in capsys.readouterr().err
