"""Predictions and budgets of laws that are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bc2 import recipe
from bc2.errors import RecipeError, UsageError
from bc2.model.model_config import ModelConfig
from bc2.pipeline.session import Session
from bc2.registry import Registry
from bc2.scaling.decide import allocate, predict, warn_of_other_text
from bc2.scaling.law import Law, settings_of
from bc2.scaling.points import Conventions, Points

Synthetic = Callable[..., Points]

N_7B = 6_476_271_616


def test_the_7b_by_a_known_law(synthetic: Synthetic) -> None:
    points = synthetic("chinchilla", 50)
    points = Points(points.names, points.params, points.tokens, points.flops, points.loss,
                    Conventions("nats", "non-embedding", "6ND"))  # fmt: skip
    law = Law.of(settings_of(points, "chinchilla", replicates=50))
    found = predict(law, recipe.load("7b"))
    tokens = 2.6e12
    assert found.params == N_7B
    assert found.tokens == pytest.approx(tokens, rel=1e-5)
    assert found.flops == pytest.approx(6 * N_7B * tokens, rel=1e-5)
    assert found.loss.value == pytest.approx(
        1.82 + 482 / N_7B**0.348 + 2085 / tokens**0.366, rel=1e-4
    )
    assert found.reach == pytest.approx(found.flops / points.flops.max())
    flops_a_token = recipe.load("7b").get(ModelConfig).flops_per_token(4096)
    assert found.counted_flops == pytest.approx(flops_a_token * tokens, rel=1e-5)


def test_far_extrapolation_is_warned_of(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    law = Law.of(settings_of(synthetic("chinchilla", 7, 0.002), "chinchilla"))
    predict(law, recipe.load("7b", ["pretrain.length=100T tokens"]))
    assert "times the largest compute that was fitted" in capsys.readouterr().err


def test_a_law_refuses_another_convention(synthetic: Synthetic) -> None:
    points = synthetic("power", 7, 0.002)
    unstated = Points(points.names, points.params, points.tokens, points.flops, points.loss,
                      Conventions("nats", "unstated", "6ND"))  # fmt: skip
    for form in ("power", "kaplan-n"):
        with pytest.raises(UsageError, match="--count-params non-embedding or total"):
            predict(Law.of(settings_of(unstated, form)), recipe.load("7b"))
    counted = Points(points.names, points.params, points.tokens, 1.2 * points.flops, points.loss,
                     Conventions("nats", "total", "counted"))  # fmt: skip
    law = Law.of(settings_of(counted, "power"))
    assert predict(law, recipe.load("7b")).flops == predict(law, recipe.load("7b")).counted_flops
    apart = synthetic("chinchilla", 50, 0.002)
    other = Points(apart.names, apart.params, apart.tokens, 1.2 * apart.flops, apart.loss,
                   Conventions("nats", "total", "counted"))  # fmt: skip
    with pytest.raises(UsageError, match="counted as 6ND"):
        allocate(Law.of(settings_of(other, "chinchilla", replicates=50)), 1e21, 125_696)


def test_epochs_are_no_number_of_tokens(synthetic: Synthetic) -> None:
    law = Law.of(settings_of(synthetic("power", 7), "power"))
    with pytest.raises(RecipeError, match="no number of tokens"):
        predict(law, recipe.load("7b", ["pretrain.length=2 epochs"]))


def test_a_budget_gives_the_optimum_and_a_shape(synthetic: Synthetic) -> None:
    law = Law.of(settings_of(synthetic("chinchilla", 50), "chinchilla", replicates=50))
    found = allocate(law, 1e21, 125_696)
    ratio = (0.348 * 482 / (0.366 * 2085)) ** (1 / 0.714)
    params = ratio * (1e21 / 6) ** (0.366 / 0.714)
    assert found.params.value == pytest.approx(params, rel=2e-3)
    assert found.params.value * found.tokens.value * 6 == pytest.approx(1e21)
    # Points of the fixture count all parameters.
    assert found.shape.num_params() == pytest.approx(params, rel=0.1)
    assert found.shape_loss >= found.loss.value * (1 - 1e-9)
    assert found.shape_tokens * 6 * found.shape.num_params() == pytest.approx(1e21)


def test_budgets_that_have_no_answer(synthetic: Synthetic) -> None:
    power = Law.of(settings_of(synthetic("power", 7), "power"))
    with pytest.raises(UsageError, match="does not say how a budget is shared"):
        allocate(power, 1e21, 125_696)
    law = Law.of(settings_of(synthetic("chinchilla", 50), "chinchilla", replicates=50))
    with pytest.raises(UsageError, match="no shape has about"):
        allocate(law, 1e10, 125_696)
    with pytest.raises(UsageError, match="no number of FLOPs"):
        allocate(law, -1, 125_696)


def test_another_text_is_warned_of_by_name(
    prepared_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = prepared_home / "small.toml"
    registry = Registry.open(prepared_home / "home")
    inputs = Session(registry).obtain_inputs("checkpoint", recipe.load(small))
    tokenizer = registry.resolve("tokenizer/small")

    class Run:
        """A run's parents are all that is read of it."""

        digest = key = "0" * 64
        parents = (inputs.one("tokens").digest, tokenizer.digest)

    capsys.readouterr()
    warn_of_other_text(registry, [Run()], recipe.load(small))  # type: ignore[list-item]
    assert capsys.readouterr().err == ""
    other = recipe.load(small, ["tokenizer.vocab_size=900", "corpus.heldout_fraction=0.1"])
    warn_of_other_text(registry, [Run()], other)  # type: ignore[list-item]
    said = capsys.readouterr().err
    assert "another tokenizer (its own [tokenizer]) than tokenizer/small" in said
    assert "another corpus (its own [corpus]) than corpus/small" in said
