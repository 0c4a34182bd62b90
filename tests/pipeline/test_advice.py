"""Advice with numbers in it can be followed: what is offered is then accepted."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from bc2.data.prep.settings import DenseSettings, NearSettings
from bc2.data.prep.stages.dense import DenseStage
from bc2.data.prep.stages.near import NearStage
from bc2.errors import RecipeError, UsageError
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig, check_layout
from bc2.recipe import load
from bc2.registry import check_name
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import _vocabulary_too_large, _vocabulary_too_small
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.run_config import check_batches
from bc2.train.training_settings import TrainingSettings


def numbers(text: str | None) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,]*", text or "")]


def test_a_text_that_fills_less_than_the_least_vocabulary() -> None:
    todo = _vocabulary_too_large(503, TokenizerConfig()).todo
    assert todo == "train on more text: no vocabulary has fewer than 512 pieces"
    for most in (512, 513, 4000):
        TokenizerConfig(vocab_size=numbers(_vocabulary_too_large(most, TokenizerConfig()).todo)[0])


def test_a_text_of_more_characters_than_the_largest_vocabulary_has() -> None:
    config = TokenizerConfig(vocab_size=600)
    assert numbers(_vocabulary_too_small(700, config).todo)[0] == 700
    todo = _vocabulary_too_small(2_000_000, config).todo or ""
    assert "vocab_size" not in todo
    lowest = re.search(r"to ([0-9.]+) at least", todo)
    assert lowest is not None
    lowered = TokenizerConfig(vocab_size=600, character_coverage=float(lowest[1]))
    assert "coverage" not in (_vocabulary_too_small(700, lowered).todo or "")


@pytest.mark.parametrize("length", [201, 5000])
def test_a_long_name_is_told_how_long_it_may_be(length: int) -> None:
    with pytest.raises(UsageError) as caught:
        check_name("x" * length)
    assert f"{length:,} characters" in caught.value.what
    assert caught.value.todo == "use at most 200"
    check_name("x" * 200)


def test_offered_tensor_sizes_divide_everything() -> None:
    shape = {"hidden_size": 48, "num_layers": 1, "num_heads": 12}
    refused = 0
    for tensor, wide, vocabulary in itertools.product(range(1, 13), (64, 96, 90), (100, 504)):
        model = ModelConfig(intermediate_size=wide, vocab_size=vocabulary, **shape)
        try:
            check_layout(ParallelConfig(tensor=tensor), model, tensor, "")
        except RecipeError as error:
            refused += 1
            for offered in numbers(error.todo):
                check_layout(ParallelConfig(tensor=offered), model, offered, "")
    assert refused > 30


def test_offered_batches_and_micro_batches_divide() -> None:
    with pytest.raises(RecipeError) as caught:
        load("tiny", ["pretrain.batch_tokens=2500"]).get(PretrainConfig)
    offers = numbers(caught.value.what.rpartition(";")[2])
    assert len(offers) == 2
    for offered in offers:
        load("tiny", [f"pretrain.batch_tokens={offered}"]).get(PretrainConfig)
    config = load("mini").get(PretrainConfig)
    for world in (2, 4, 8, 16, 32):
        try:
            check_batches(config.model_copy(update={"micro_batch": 32}), ParallelConfig(), world)
        except RecipeError as error:
            for offered in numbers(error.todo):
                fitting = config.model_copy(update={"micro_batch": offered})
                check_batches(fitting, ParallelConfig(), world)


@pytest.mark.parametrize("threshold", [5e-324, 0.001, 0.01, 0.05])
def test_an_offered_recall_can_be_reached(threshold: float) -> None:
    for settings, stage in ((NearSettings, NearStage), (DenseSettings, DenseStage)):
        try:
            stage(settings(threshold=threshold, recall=0.9999999))
        except RecipeError as error:
            offered = re.search(r"at most ([0-9.]+)", error.todo or "")
            if offered:
                stage(settings(threshold=threshold, recall=float(offered[1])))
            stage(settings(threshold=0.95))


@pytest.mark.parametrize(
    ("override", "todo"),
    [
        ("pretrain.weights={en-python-dosc=1.0}", "did you mean 'en-python-docs'?"),
        ("tokenizer.weights={zh-review=1.0}", "did you mean 'zh-reviews'?"),
        ("tokenizer.weights={nothing-like-it=1.0}", "it has en-python-docs, zh-reviews, code-py"),
    ],
)
def test_a_mistyped_source_is_found_before_there_is_a_corpus(
    tmp_path: Path, override: str, todo: str
) -> None:
    from bc2.pipeline.session import Session
    from bc2.pipeline.table import check_recipe
    from bc2.registry import Registry

    loaded = load("tiny", [override])
    with pytest.raises(RecipeError) as caught:
        check_recipe(loaded)
    assert (caught.value.todo or "").startswith(todo)
    assert (caught.value.where or "").startswith("--set")
    session = Session(Registry.open(tmp_path / "home"))
    with pytest.raises(RecipeError, match="the corpus has no source"):
        session.obtain("checkpoint", loaded, settings=TrainingSettings.of(loaded))
    assert session.built == []
