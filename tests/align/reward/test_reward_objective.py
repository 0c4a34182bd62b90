"""The reward model's loss and gradients: packed, against each answer alone in fp64."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import drawn_pairs, packed_pairs
from torch import Tensor

from bc2.align.pairs.pair_samples import with_end
from bc2.align.reward.reward_loss import absolute_loss, ranking_loss
from bc2.align.reward.reward_objective import ALPHA, TARGET, PairwiseScores, answer_scores
from bc2.align.samples.sample import Sample
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, LENGTH = 64, 96


def reward_model(seed: int = 0, **changes: Any) -> Transformer:
    settings = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2,
        "num_heads": 4, "context_length": 128, "head": "scalar",
    }  # fmt: skip
    model = Transformer(ModelConfig(**(settings | changes)))
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.score.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed + 1))
    return model.double()


def score_alone(model: Transformer, sample: Sample) -> Tensor:
    """The score of one answer: the model runs on its tokens alone, its end included."""
    tokens = torch.from_numpy(np.append(sample.tokens, sample.labels[-1]).astype(np.int64))
    hidden = model(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
    return hidden[-1] @ model.score.weight[0]


def naive_loss(
    model: Transformer, pairs: list[tuple[Sample, Sample]], targets: Any, alpha: Any
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for number, (chosen, rejected) in enumerate(pairs):
        w, x = score_alone(model, chosen), score_alone(model, rejected)
        total = total + torch.log1p(torch.exp(-(w - x)))
        squares = (w - targets[number, 0]) ** 2 + (x - targets[number, 1]) ** 2
        total = total + alpha[number] * squares
    return total


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 9), longest=st.integers(1, 20), seed=st.integers(0, 99),
    micro=st.integers(1, 3), weighed=st.booleans(),
)  # fmt: skip
def test_packed_pairs_are_each_answer_alone(
    count: int, longest: int, seed: int, micro: int, weighed: bool
) -> None:
    pairs, model = drawn_pairs(count, longest, V, seed=seed), reward_model(seed)
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(count, 2))
    alpha = rng.uniform(0, 1, count) * weighed
    fields = {TARGET: targets, ALPHA: np.stack([alpha, alpha], axis=1)}
    rows = packed_pairs(pairs, LENGTH, ends=True, fields=fields, seed=seed)
    other = copy.deepcopy(model)
    expected = naive_loss(other, pairs, targets, alpha)
    expected.backward()
    found, seen = 0.0, 0.0
    numbers = range(rows.first_row(1))
    for at in range(0, len(numbers), micro):
        batch = rows.batch(numbers[at : at + micro])
        loss = PairwiseScores()(model, batch)
        loss.total.backward()
        found += float(loss.total)
        seen += batch.weights["pairs"]
    assert seen == count
    assert found == pytest.approx(float(expected), rel=1e-12)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-11, msg=name)


def test_the_score_is_read_at_the_end_token_and_nowhere_else() -> None:
    model, ((chosen, rejected), *_) = reward_model(), drawn_pairs(1, 12, V)
    rows = packed_pairs([(chosen, rejected)], LENGTH, ends=True)
    batch = rows.batch([0])
    scores = answer_scores(model, batch)
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx(
        [float(score_alone(model, chosen)), float(score_alone(model, rejected))], rel=1e-12
    )
    ended = with_end(chosen)
    assert ended.tokens[-1] == chosen.labels[-1]
    assert ended.trained == 1
    other = Sample(
        chosen.tokens, np.append(chosen.labels[:-1], (chosen.labels[-1] + 1) % V), chosen.weights
    )
    moved = answer_scores(model, packed_pairs([(other, rejected)], LENGTH, ends=True).batch([0]))
    assert abs(float(moved[0] - scores[0])) > 1e-3
    assert float(moved[1]) == float(scores[1])


def test_a_pair_of_equal_scores_loses_ln_2() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert ranking_loss(zero, zero).tolist() == pytest.approx([math.log(2)] * 3)


def test_losses_at_extremes_are_finite() -> None:
    far = torch.tensor([1e4, -1e4], dtype=torch.float64)
    assert ranking_loss(far, torch.zeros(2)).tolist() == pytest.approx([0.0, 1e4])
    scores = torch.tensor([[2.0, -1.0]])
    assert absolute_loss(scores, torch.tensor([[1.0, 1.0]])).tolist() == [5.0]


def test_a_language_model_gives_no_scores() -> None:
    model = Transformer(reward_model().config.model_copy(update={"head": "language"}))
    batch = packed_pairs(drawn_pairs(1, 4, V), LENGTH, ends=True).batch([0])
    with pytest.raises(ValueError, match="gives no scores"):
        answer_scores(model, batch)
