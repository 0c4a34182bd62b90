"""What the benchmark of generation settles before it starts its contenders."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from bc2.bench.generation import generation_plan
from bc2.bench.generation.generation_plan import GenerationOptions, make_generation_plan
from bc2.bench.generation.job import CONTENDERS, PARTS
from bc2.bench.generation.measure import GenerationPlan
from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig

MODEL = ModelConfig(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=4
)  # fmt: skip
ASKED: dict[str, Any] = {
    "only": None, "against": None, "sizes": "8,16", "precision": "fp32", "device": "cpu",
    "rounds": 2, "requests": 5, "seed": 0, "prompts": None, "tokenizer": None, "mmlu": None,
    "subjects": 1, "questions": 1, "n": 4, "max_running": None, "cache_mb": None,
}  # fmt: skip


def plan(model: ModelConfig = MODEL, **asked: Any) -> GenerationPlan:
    return make_generation_plan(model, GenerationOptions(**{**ASKED, **asked}))


def test_without_a_choice_everything_is_measured() -> None:
    made = plan()
    assert (made.parts, made.contenders, made.sizes) == (PARTS, CONTENDERS, (8, 16))
    assert [job.name for job in made.jobs("bf16")] == [f"{kind}-bf16" for kind in CONTENDERS]
    assert made.tried_requests == 2


def test_choices_keep_the_order_of_the_tables() -> None:
    made = plan(only="n,decode", against="hf-continuous,hf-static", precision="bf16,fp32")
    assert made.parts == ("n", "decode")
    assert made.contenders == ("bc2", "hf-static", "hf-continuous")
    assert made.precisions == ("fp32", "bf16")
    assert plan(against="none").contenders == ("bc2",)


def test_the_engine_is_set_from_options() -> None:
    engine = plan(max_running=7, cache_mb=3).job.engine
    assert (engine.max_running, engine.cache_bytes) == (7, 3_000_000)


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"only": "decoding"}, "--only does not know 'decoding'"),
        ({"against": "vllm"}, "--against does not know 'vllm'"),
        ({"precision": "fp16"}, "--precision does not know 'fp16'"),
        ({"sizes": "0,4"}, "--sizes has 0 sequences"),
        ({"sizes": "many"}, "--sizes cannot read 'many'"),
        ({"device": "abacus"}, "no such device"),
    ],
)
def test_wrong_options_are_wrong_usage(asked: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        plan(**asked)


def test_without_transformers_bc2_is_measured_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        generation_plan.importlib.util,
        "find_spec",
        lambda name: None if name == "transformers" else find(name),
    )
    assert plan().contenders == ("bc2",)
    assert "transformers is not installed" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not installed"):
        plan(against="hf-static")
    assert plan(against="none").contenders == ("bc2",)


def test_other_positions_than_the_peers_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    plan(MODEL.model_copy(update={"position": "alibi"}))
    assert "rotary positions where this model has alibi" in capsys.readouterr().err
