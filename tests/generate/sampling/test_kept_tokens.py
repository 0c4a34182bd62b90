"""What is kept does not depend on how it is found, where thousands of tokens are kept."""

import math

import pytest
import torch

from bc2.generate.sampling import choose as choosing
from bc2.generate.sampling.choose import choose
from bc2.generate.sampling.kept_tokens import Listed, Whole, limits_of
from bc2.generate.sampling.token_groups import Draw, Groups, Rows
from bc2.generate.sampling_config import SamplingConfig

VOCAB = 20_000

RULES = [
    {"top_k": 3},
    {"top_k": 5000},
    {"top_p": 0.9},
    {"top_p": 0.3},
    {"top_p": 0.999, "temperature": 0.7},
    {"min_p": 0.1},
    {"top_k": 5000, "top_p": 0.6},
    {"top_k": 3000, "top_p": 0.9, "min_p": 0.01},
]


def shaped(shape, rows, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    if shape == "flat":
        return torch.randn(rows, VOCAB, generator=generator, dtype=dtype) * 0.3
    if shape == "few levels":
        return torch.randint(5, (rows, VOCAB), generator=generator).to(dtype) * 0.4
    power = {"zipf": 1.1, "peaked": 2.2}[shape]
    by_rank = -power * torch.arange(1, VOCAB + 1).log().to(dtype)
    return torch.stack([by_rank[torch.randperm(VOCAB, generator=generator)] for _ in range(rows)])


def made(logits, draws, margin):
    groups = Groups(logits)
    margins = torch.full_like(groups.top, margin)
    return Rows(groups, draws, torch.arange(len(logits)), groups.top, margins)


def check_limits(limits, expected, shape):
    """Among equals the next may be taken for the last, which is the careful side."""
    torch.testing.assert_close(limits.least, expected.least, rtol=0, atol=1e-12)
    if shape == "few levels":
        assert (limits.sure >= expected.sure - 1e-12).all()
        assert (limits.lowest <= expected.lowest + 1e-12).all()
    else:
        torch.testing.assert_close(limits.lowest, expected.lowest, rtol=0, atol=1e-12)
        torch.testing.assert_close(limits.sure, expected.sure, rtol=0, atol=1e-12)


SHAPES = ["flat", "zipf", "peaked", "few levels"]


@pytest.mark.parametrize("margin", [-1.0, 1e-3])
@pytest.mark.parametrize("shape", SHAPES)
def test_limits_are_those_of_the_whole_list_in_order(shape, margin):
    draws = [Draw(SamplingConfig(**rule), 3, place) for place, rule in enumerate(RULES)]
    rows = made(shaped(shape, len(RULES)), draws, margin)
    whole = Whole(rows, rows.likelihoods())
    found = whole.kept()
    ordered = Listed(rows, VOCAB, whole.total)
    check_limits(found.limits, ordered.limits, shape)
    kept = whole.scaled >= found.limits.least[:, None]
    torch.testing.assert_close(found.total, (whole.scaled.exp() * kept).sum(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wrong", ["too high", "too low"])
def test_a_wrong_guess_changes_nothing(shape, wrong, monkeypatch):
    draws = [Draw(SamplingConfig(**rule), 3, place) for place, rule in enumerate(RULES)]
    rows = made(shaped(shape, len(RULES)), draws, 1e-3)
    whole = Whole(rows, rows.likelihoods())
    expected = Listed(rows, VOCAB, whole.total).limits
    at = {"too high": (-1e-3, math.inf), "too low": (-40.0, -30.0)}[wrong]
    ends = tuple(torch.full_like(whole.total, x) for x in at)
    monkeypatch.setattr(whole, "_guess", lambda *_: ends)
    check_limits(limits_of(rows, whole, whole.total), expected, shape)


@pytest.mark.parametrize("shape", ["zipf", "peaked"])
def test_candidates_and_all_tokens_give_the_same_draw(shape, monkeypatch):
    draws = [
        Draw(SamplingConfig(**rule), 3, place)
        for place in range(20)
        for rule in ({"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}, {"top_k": 30, "top_p": 0.8})
    ]
    logits = shaped(shape, len(draws), dtype=torch.float32)
    chosen = choose(logits.clone(), draws, lambda top: torch.full_like(top, 1e-4))
    monkeypatch.setattr(choosing, "CANDIDATES", (0, 0))
    other = choose(logits.clone(), draws, lambda top: torch.full_like(top, 1e-4))
    assert chosen.ids.tolist() == other.ids.tolist()
    assert chosen.uncertain.tolist() == other.uncertain.tolist()


@pytest.mark.parametrize("shape", ["flat", "zipf", "peaked"])
def test_moved_logits_change_no_certain_choice(shape):
    margin = 1e-3
    draws = [
        Draw(SamplingConfig(**rule), key, place)
        for key in range(3)
        for place, rule in enumerate(RULES)
    ]
    before = shaped(shape, len(draws))
    moves = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    chosen = choose(before.clone(), draws, lambda top: torch.full_like(top, margin))
    after = choose(before + 0.98 * margin * moves.double(), draws)
    certain = ~chosen.uncertain
    assert certain.sum() > len(draws) / 2
    assert chosen.ids[certain].tolist() == after.ids[certain].tolist()
