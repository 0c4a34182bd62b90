import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.generate.sampling import draw_ids, keep_top_k, keep_top_p, prompt_generator, sample, warp
from bc2.generate.sampling_config import SamplingConfig


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_warp_without_limits_is_softmax_of_the_scaled_logits():
    logits = torch.randn(3, 50)
    torch.testing.assert_close(warp(logits, 0.7), (logits.double() / 0.7).softmax(-1))


def test_no_temperature_overflows():
    probabilities = warp(torch.tensor([[1e30, 0.0, 1e30]]), 1e-300)
    assert probabilities.tolist() == [[0.5, 0.0, 0.5]]


def test_top_k_keeps_k_and_ties():
    assert keep_top_k(row(1, 5, 3, 4), 2).tolist() == [[-math.inf, 5, -math.inf, 4]]
    assert keep_top_k(row(1, 5, 4, 4), 2).tolist() == [[-math.inf, 5, 4, 4]]
    assert keep_top_k(row(1, 5), 0).tolist() == [[1, 5]]
    assert keep_top_k(row(1, 5), 9).tolist() == [[1, 5]]


def test_top_p_keeps_the_fewest_that_reach_p():
    p = row(0.5, 0.1, 0.25, 0.15)
    torch.testing.assert_close(keep_top_p(p, 0.5), row(1, 0, 0, 0))
    torch.testing.assert_close(keep_top_p(p, 0.6), row(2 / 3, 0, 1 / 3, 0))
    torch.testing.assert_close(keep_top_p(p, 1.0), p)
    torch.testing.assert_close(keep_top_p(p, 1e-9), row(1, 0, 0, 0))


@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    p=st.floats(0.01, 0.99),
)
def test_top_p_by_brute_force(weights, p):
    total = sum(weights)
    order = sorted(range(len(weights)), key=lambda i: (-weights[i], i))
    kept, mass = set(), 0.0
    for i in order:
        if mass / total >= p - 1e-12:
            break
        kept.add(i)
        mass += weights[i]
    if any(abs(sum(sorted(weights)[::-1][:n]) / total - p) < 1e-9 for n in range(len(weights))):
        return  # exactly at the limit, rounding decides
    found = keep_top_p(row(*weights) / total, p)
    assert {i for i, x in enumerate(found[0].tolist()) if x > 0} == kept
    assert found.sum().item() == pytest.approx(1.0)


def test_draw_inverts_the_cumulative_distribution():
    p = row(0.25, 0.0, 0.5, 0.25, 0.0).expand(6, 5)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw_ids(p, u).tolist() == [0, 0, 2, 2, 3, 3]


@settings(max_examples=100, deadline=None)
@given(
    shares=st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 1.0]), min_size=1, max_size=9),
    u=st.sampled_from([0.0, 0.5, 1 - 2**-53]),
)
def test_draw_never_takes_an_impossible_token(shares, u):
    if not any(shares):
        return
    p = row(*shares)
    p = p / p.sum()
    chosen = draw_ids(p, torch.tensor([u], dtype=torch.float64)).item()
    assert p[0, chosen] > 0


def test_samples_follow_the_distribution():
    logits = row(0.0, math.log(2), math.log(5)).expand(20_000, 3)
    generators = [torch.Generator().manual_seed(0)] * 20_000
    counts = sample(logits, SamplingConfig(), generators).bincount(minlength=3)
    # Four standard deviations of a binomial count.
    for count, share in zip(counts.tolist(), (1 / 8, 2 / 8, 5 / 8), strict=True):
        assert abs(count - 20_000 * share) < 4 * math.sqrt(20_000 * share * (1 - share))


def test_prompts_have_random_numbers_of_their_own():
    def first(seed, index):
        return torch.rand(4, generator=prompt_generator(seed, index)).tolist()

    drawn = [tuple(first(seed, index)) for seed in range(5) for index in range(5)]
    assert len(set(drawn)) == 25
    assert first(3, 4) == first(3, 4)
    assert first(2**63 - 1, 0) != first(0, 2**63 - 1)
