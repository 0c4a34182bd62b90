"""The settings that all training shares, by a section of an algorithm that there is not yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.recipe import load
from bc2.train.memory.estimate import settle_checkpointing
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.run_config import (
    GuardConfig,
    RunConfig,
    ScheduleConfig,
    check_batches,
    check_context,
)
from bc2.train.schedule import Schedule
from bc2.train.training_settings import TrainingSettings


class PairsConfig(RunConfig):
    """Two sequences a pair."""

    section: ClassVar[str] = "pairs"
    batch_key: ClassVar[str] = "batch_pairs"

    batch_pairs: int = Field(gt=0)
    beta: float = 0.1

    @property
    def batch_sequences(self) -> int:
        return 2 * self.batch_pairs


def pairs(**changes: Any) -> PairsConfig:
    settings = {"length": "20 steps", "batch_pairs": 6, "micro_batch": 4, "sequence_length": 32}
    return PairsConfig(**{**settings, **changes})


def pretraining(**changes: Any) -> PretrainConfig:
    settings = {"length": "20 steps", "batch_tokens": 384, "micro_batch": 4, "sequence_length": 32}
    return PretrainConfig(**{**settings, **changes})


def test_a_section_has_what_is_shared_and_its_own() -> None:
    shared = set(RunConfig.model_fields)
    assert set(PairsConfig.model_fields) - shared == {"batch_pairs", "beta"}
    assert set(PretrainConfig.model_fields) - shared == {
        "tokens", "batch_tokens", "weights", "max_epochs", "z_loss",
        "eval_tokens", "sample_prompts", "sample_tokens",
    }  # fmt: skip
    assert shared < set(PretrainConfig.model_fields)
    with pytest.raises(TypeError, match="batch_sequences"):
        RunConfig(length="1 steps", micro_batch=1)  # type: ignore[abstract]


def test_a_step_has_the_tokens_of_its_sequences() -> None:
    assert (pairs().batch_sequences, pairs().step_tokens) == (12, 384)
    made = pretraining()
    assert (made.batch_sequences, made.step_tokens) == (12, made.batch_tokens)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"micro_batch": 5}, "batch_pairs = 6 are 12 sequences, not a multiple of micro_batch = 5"),
        (
            {"length": f"{2**62} steps"},
            "steps of batch_pairs = 6: more tokens than can be counted",
        ),
        ({"micro_batch": 0}, 'must be a number of sequences above 0, or "auto"'),
    ],
)
def test_a_batch_of_pairs_is_checked_in_its_own_words(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        pairs(**changes)
    assert pairs(micro_batch="auto").micro_batch == "auto"


def test_errors_name_the_section() -> None:
    with pytest.raises(RecipeError, match=r"12 sequences is no whole number") as caught:
        check_batches(pairs(), ParallelConfig(), 4)
    assert caught.value.where == "pairs.batch_pairs"
    assert caught.value.todo == "pairs.micro_batch may be 1, 3"
    with pytest.raises(RecipeError, match=r"does not divide pairs\.sequence_length = 32"):
        check_batches(pairs(), ParallelConfig(sequence=3), 3)
    with pytest.raises(RecipeError, match="does not end within the run") as caught:
        Schedule.of(pairs(schedule=ScheduleConfig(warmup="20 steps")), epoch_tokens=1000)
    assert caught.value.where == "pairs.schedule.warmup"
    tiny = TrainingSettings.of(load("tiny"))
    named = replace(tiny, training=pairs()).by_name()
    assert (named["pairs.batch_pairs"], named["pairs.beta"]) == (6, 0.1)


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    check_context(load("tiny"), PretrainConfig)
    long = load("tiny", ["pretrain.sequence_length=1024", "pretrain.micro_batch=2"])
    with pytest.raises(RecipeError, match=r"pretrain\.sequence_length = 1024 is longer"):
        check_context(long, PretrainConfig)


def test_what_is_resolved_keeps_its_class() -> None:
    model = load("tiny").get(ModelConfig)
    auto = pairs(activation_checkpointing="auto", device="cpu", precision="fp32")
    assert settle_checkpointing(model, auto) == auto.model_copy(
        update={"activation_checkpointing": settle_checkpointing(model, auto).segment_layers}
    )


def test_a_rollback_has_the_interval_of_checkpoints_in_the_key() -> None:
    plain = pairs().keyed()
    assert "checkpoint_every" not in plain
    assert plain["guard"] == {"action": "skip"}
    back = pairs(guard=GuardConfig(action="rollback"), checkpoint_every="7 steps").keyed()
    assert back["checkpoint_every"] == "7 steps"
    assert (plain["compile"], pairs(compile="auto").keyed()["compile"]) == (False, False)


# -- the schedule -------------------------------------------------------------------------


def test_the_shape_is_in_the_key_unless_it_is_the_cosine() -> None:
    before = {"warmup": "2000 steps", "min_ratio": 0.1}
    assert ScheduleConfig().keyed() == ScheduleConfig(shape="cosine").keyed() == before
    for shape in ("linear", "constant"):
        assert ScheduleConfig(shape=shape).keyed() == {**before, "shape": shape}


@pytest.mark.parametrize("min_ratio", [0.0, 0.2, 1.0])
def test_a_constant_rate_takes_no_minimum(min_ratio: float) -> None:
    with pytest.raises(ValidationError, match="no effect on a constant learning rate"):
        ScheduleConfig(shape="constant", min_ratio=min_ratio)
    made = ScheduleConfig(shape="constant")
    assert ScheduleConfig.model_validate_json(made.model_dump_json()) == made
    assert ScheduleConfig(shape="linear", min_ratio=min_ratio).min_ratio == min_ratio


def test_a_recipe_says_where_the_minimum_without_effect_is() -> None:
    changes = ["pretrain.schedule.shape=constant", "pretrain.schedule.min_ratio=0.2"]
    with pytest.raises(RecipeError) as caught:
        load("tiny", changes).get(PretrainConfig)
    assert caught.value.what.startswith(
        "pretrain.schedule: min_ratio = 0.2 has no effect on a constant learning rate; leave it "
        'at its default, 0.1, or set shape = "linear" or "cosine"'
    )
    with pytest.raises(RecipeError, match="'cosine', 'linear' or 'constant'"):
        load("tiny", ["pretrain.schedule.shape=cosin"]).get(PretrainConfig)


@pytest.mark.parametrize("unit", ["steps", "tokens", "epochs"])
def test_only_a_warm_up_may_be_nothing(unit: str) -> None:
    assert ScheduleConfig(warmup=f"0 {unit}").warmup_length.amount == 0
    for key in ("length", "checkpoint_every", "eval_every"):
        with pytest.raises(RecipeError, match=rf"pretrain\.{key}: a length must be more than zero"):
            load("tiny", [f"pretrain.{key}=0 {unit}"]).get(PretrainConfig)
