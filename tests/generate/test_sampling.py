"""Choices follow the distribution of their settings, whatever the other rows."""

import math

import pytest
import torch

from bc2.generate.sampling import Draw, choose
from bc2.generate.sampling_config import SamplingConfig


def draws(count, **settings):
    return [Draw(SamplingConfig(**settings), key=7, place=i) for i in range(count)]


def kept_by_definition(logits, settings):
    """The ids that are kept, by sorting."""
    x = (logits.double() / settings.temperature).log_softmax(-1)
    if settings.top_k:
        x = x.masked_fill(x < x.topk(min(settings.top_k, len(x))).values[-1], -math.inf)
    p = x.softmax(-1)
    if settings.top_p < 1:
        ordered, _ = p.sort(descending=True, stable=True)
        last = int((ordered.cumsum(-1) < settings.top_p).sum().clamp(max=len(p) - 1))
        p = p.masked_fill(p < ordered[last], 0.0)
    return p.masked_fill(p < settings.min_p * p.max(), 0.0) / p.sum()


RULES = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("vocab", [7, 64, 150, 1000])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_follow_the_distribution(rule, vocab):
    settings = SamplingConfig(**rule)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    expected = kept_by_definition(logits, settings)
    expected = expected / expected.sum()
    count = 20_000
    chosen = choose(logits.expand(count, -1).clone(), draws(count, **rule))
    counts = chosen.ids.bincount(minlength=vocab).double()
    assert (counts[expected == 0] == 0).all()
    # Chi-squared over the tokens with enough draws: its mean is their number.
    often = expected * count > 5
    off = ((counts - count * expected) ** 2 / (count * expected))[often]
    assert off.sum() < often.sum() + 6 * math.sqrt(2 * often.sum()) + 1
    torch.testing.assert_close(
        chosen.drawn.double(), expected.log()[chosen.ids], rtol=1e-5, atol=1e-5
    )
