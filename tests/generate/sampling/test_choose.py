"""Choices follow the distribution of their settings, whatever the other rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bc2.errors import RunFailed
from bc2.generate.sampling.choose import choose
from bc2.generate.sampling.noise import gumbel
from bc2.generate.sampling.token_groups import GROUP, Draw
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
    count = 20_000 if vocab < 1000 else 4_000
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


# --------------------------------------------------------------- what is kept, and what is drawn


def expected_choice(logits, draw, kept):
    """The id and its log-probability, from what is kept: log-probabilities, -inf if left out.

    First a group is drawn by the probability of what is kept of it, then a token of it.
    """
    key, place = torch.tensor([draw.key]), torch.tensor([draw.place])
    groups = kept.split(GROUP)
    sums = torch.stack([group.logsumexp(-1) for group in groups])
    group = int((sums + gumbel(key, place, torch.arange(len(groups)), 0)[0]).argmax())
    first = group * GROUP
    ids = torch.arange(first, first + len(groups[group]))
    chosen = first + int((groups[group] + gumbel(key, place, ids, 1)[0].double()).argmax())
    return chosen, float(kept.log_softmax(-1)[chosen])


def check_kept(logits, drawn_by, kept_of):
    chosen = choose(logits.clone(), drawn_by)
    for row, draw in enumerate(drawn_by):
        kept = kept_of(logits[row], draw)
        token, log_prob = expected_choice(logits[row], draw, kept)
        assert (row, int(chosen.ids[row])) == (row, token)
        assert float(chosen.drawn[row]) == pytest.approx(log_prob, abs=1e-6)
    assert not chosen.uncertain.any()


def by_sorting(logits, draw):
    return kept_by_definition(logits, draw.settings).log()


KEEPING = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 70, "temperature": 3.0},
    {"top_k": 10_000},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.999, "temperature": 2.0},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"min_p": 1e-6},
    {"top_k": 5, "top_p": 0.6},
    {"top_k": 50, "top_p": 0.3},
    {"top_k": 7, "min_p": 0.1},
    {"top_p": 0.7, "min_p": 0.1, "temperature": 0.7},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


def several(number, rules=KEEPING, **more):
    return [
        Draw(SamplingConfig(**rule, **more), key=number, place=place)
        for place, rule in enumerate(rules)
    ]


@pytest.mark.parametrize("vocab", [5, 64, 200, 20_000])
@pytest.mark.parametrize("levels", [2, 6, 40])
def test_what_is_kept_with_ties_at_the_limits(vocab, levels):
    """Logits have few values, so that what is kept ends among equals nearly always."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randint(levels, (len(KEEPING), vocab), generator=generator) * 0.37
        check_kept(logits.double(), several(seed), by_sorting)


def test_what_is_kept_where_more_tie_than_are_looked_at_first():
    logits = torch.full((1, 20_000), -5.0, dtype=torch.float64)
    logits[0, :40] = torch.linspace(3, 1, 40)
    logits[0, 40:4040] = 0.5
    for place in range(10):
        for rule in ({"top_k": 50, "top_p": 0.3}, {"top_k": 50, "min_p": 0.2}, {"top_k": 50}):
            check_kept(logits, [Draw(SamplingConfig(**rule), key=3, place=place)], by_sorting)


def test_what_is_kept_is_what_transformers_keeps():
    generator = torch.Generator().manual_seed(3)

    def theirs(logits, draw):
        settings = draw.settings
        chain = LogitsProcessorList([TemperatureLogitsWarper(settings.temperature)])
        if settings.top_k:
            chain.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p < 1:
            chain.append(TopPLogitsWarper(settings.top_p))
        if settings.min_p:
            chain.append(MinPLogitsWarper(settings.min_p))
        return chain(torch.zeros(1, 1, dtype=torch.int64), logits[None].clone())[0].log_softmax(-1)

    for vocab in (50, 20_000):
        rules = [rule for rule in KEEPING if "min_p" not in rule or rule["min_p"] < 1]
        logits = torch.randn(len(rules), vocab, generator=generator, dtype=torch.float64) * 3
        check_kept(logits, several(8, rules, max_new_tokens=1), theirs)


def test_the_repetition_penalty_is_transformers():
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(3, 90, generator=generator, dtype=torch.float64)
    seen = [[3, 7, 50], list(range(0, 90, 2)), []]
    penalties = [1.7, 0.6, 2.0]
    for temperature in (0.0, 1.0):
        by = [
            Draw(
                SamplingConfig(temperature=temperature, repetition_penalty=penalty, logprobs=0),
                key=1,
                place=row,
                seen=tokens,
            )
            for row, (tokens, penalty) in enumerate(zip(seen, penalties, strict=True))
        ]
        chosen = choose(logits.clone(), by)
        for row, draw in enumerate(by):
            tokens = torch.tensor([draw.seen], dtype=torch.int64)
            penalty = RepetitionPenaltyLogitsProcessor(draw.settings.repetition_penalty)
            expected = penalty(tokens, logits[row][None].clone())[0] if draw.seen else logits[row]
            token = int(chosen.ids[row])
            if temperature:
                log_prob = float(expected.log_softmax(-1)[token])
                assert float(chosen.drawn[row]) == pytest.approx(log_prob, abs=1e-9)
            else:
                assert token == int(expected.argmax())
            # The raw distribution knows no penalty.
            raw = float(logits[row].log_softmax(-1)[token])
            assert float(chosen.raw[row]) == pytest.approx(raw, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("temperature", [1e-9, 1e-40, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature, rule, dtype):
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    chosen = choose(logits.clone(), draws(4, temperature=temperature, **rule))
    assert chosen.ids.tolist() == logits.argmax(1).tolist()
    assert chosen.drawn.tolist() == [0.0] * 4


def test_a_large_temperature_is_nearly_uniform():
    logits = torch.randn(80, generator=torch.Generator().manual_seed(0))
    chosen = choose(logits.expand(8000, -1).clone(), draws(8000, temperature=100.0))
    counts = chosen.ids.bincount(minlength=80).double()
    assert ((counts - 100) ** 2 / 100).sum() < 80 + 6 * math.sqrt(160)
    torch.testing.assert_close(
        chosen.drawn.double(),
        (logits.double() / 100).log_softmax(-1)[chosen.ids],
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("rule", [{"temperature": 0.0}, *RULES], ids=str)
def test_a_vocabulary_of_one(rule):
    by = draws(2, **rule, logprobs=3)
    chosen = choose(torch.tensor([[-3.0], [9.0]]), by, lambda top: torch.full_like(top, 0.5))
    assert chosen.ids.tolist() == [0, 0]
    assert chosen.drawn.tolist() == [0, 0]
    assert chosen.raw.tolist() == [0, 0]
    assert chosen.top == {0: ([0], [0.0]), 1: ([0], [0.0])}
    assert not chosen.uncertain.any()


@pytest.mark.parametrize("vocab", [65, 20_000])
def test_a_row_is_chosen_for_as_if_it_were_alone(vocab):
    generator = torch.Generator().manual_seed(6)
    rules = [*KEEPING, *RULES, {"temperature": 0.0}, {"logprobs": 4}, {"repetition_penalty": 1.4}]
    rules += [{"temperature": 0.0, "repetition_penalty": 3.0, "logprobs": 0, "top_p": 0.5}]
    logits = torch.randn(len(rules), vocab, generator=generator, dtype=torch.float64) * 2
    by = [
        Draw(SamplingConfig(**rule), key=5, place=place, seen=[place, 2 * place + 1])
        for place, rule in enumerate(rules)
    ]
    together = choose(logits.clone(), by)
    for row, draw in enumerate(by):
        alone = choose(logits[row : row + 1].clone(), [draw])
        assert alone.ids[0] == together.ids[row]
        torch.testing.assert_close(alone.drawn[0], together.drawn[row], rtol=0, atol=1e-12)
        if draw.settings.logprobs is None:
            assert alone.raw is None
            continue
        torch.testing.assert_close(alone.raw[0], together.raw[row], rtol=0, atol=1e-12)
        assert alone.top.get(0) == together.top.get(row)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_raw_log_probabilities_and_the_likeliest_tokens(temperature):
    logits = torch.randn(4, 150, generator=torch.Generator().manual_seed(7)) * 3
    logits[2, 20] = logits[2, 77] = logits[2].max() + 1  # of equal ones the lowest id is first
    by = [
        Draw(SamplingConfig(temperature=temperature, logprobs=count), key=2, place=row)
        for row, count in enumerate([0, 5, 3, None])
    ]
    chosen = choose(logits.clone(), by)
    expected = logits.double().log_softmax(-1)
    for row in range(3):
        token = chosen.ids[row]
        torch.testing.assert_close(
            chosen.raw[row].double(), expected[row, token], atol=1e-5, rtol=0
        )
    assert chosen.top.keys() == {1, 2}
    for row, count in ((1, 5), (2, 3)):
        ids, log_probs = chosen.top[row]
        order = expected[row].sort(descending=True, stable=True).indices[:count].tolist()
        assert ids == order
        assert log_probs == pytest.approx(expected[row, order].tolist(), abs=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("rule", [{"temperature": 0.0}, {}, {"top_p": 0.5}], ids=str)
def test_logits_that_are_no_numbers_are_an_error(rule, wrong):
    logits = torch.randn(3, 100)
    logits[1, 70] = wrong
    with pytest.raises(RunFailed, match="not numbers"):
        choose(logits, draws(3, **rule))
    with pytest.raises(RunFailed, match="not numbers"):
        choose(torch.full((1, 100), -math.inf), draws(1, **rule))


# -------------------------------------------------------------------------------- uncertainty

#: How far two logits may move against each other.
MARGIN = 0.01


@st.composite
def near_ties(draw):
    """Logits of which many are nearly equal, others by which they are moved, and settings."""
    size = draw(st.integers(2, 12))
    levels = st.tuples(st.integers(-4, 0), st.sampled_from([0.0, 0.0, 0.3, 0.9, 1.1, 2.1]))
    logits = [
        0.5 * level + MARGIN * near
        for level, near in draw(st.lists(levels, min_size=size, max_size=size))
    ]
    moves = draw(st.lists(st.sampled_from([-0.49, 0.0, 0.2, 0.49]), min_size=size, max_size=size))
    rule = {
        "temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 4.0])),
        "top_k": draw(st.integers(0, 5)),
        "top_p": draw(st.sampled_from([1.0, 0.95, 0.7, 0.5, 0.25])),
        "min_p": draw(st.sampled_from([0.0, 0.1, 0.4])),
    }
    return logits, moves, Draw(SamplingConfig(**rule), draw(st.integers(0, 50)))


def check_certain(logits, moves, draw):
    before = torch.tensor([logits], dtype=torch.float64)
    after = before + MARGIN * torch.tensor([moves])
    chosen = choose(before.clone(), [draw], lambda top: torch.full_like(top, MARGIN))
    other = choose(after.clone(), [draw])
    assert bool(chosen.uncertain[0]) or int(chosen.ids[0]) == int(other.ids[0])


@hypothesis_settings(max_examples=300, deadline=None)
@given(near_ties())
def test_what_is_within_the_tolerance_changes_no_certain_choice(case):
    check_certain(*case)


@pytest.mark.slow
@hypothesis_settings(max_examples=5_000, deadline=None)
@given(near_ties())
def test_what_is_within_the_tolerance_changes_no_certain_choice_soak(case):
    check_certain(*case)


@pytest.mark.parametrize("moves", [[0.0] * 3 + [0.4] + [0.0] * 9, [0.0] * 4 + [0.4] * 9])
def test_equals_at_the_end_of_top_k_change_what_top_p_keeps(moves):
    """All that tie with the k-th are kept; if they do not quite tie, they have no part in p."""
    logits = [0.0, -0.1, -0.2, *[-0.3] * 10]
    for key in range(200):
        check_certain(logits, moves, Draw(SamplingConfig(top_k=4, top_p=0.25), key))
        moved = [logit + MARGIN * move for logit, move in zip(logits, moves, strict=True)]
        back = [-move for move in moves]
        check_certain(moved, back, Draw(SamplingConfig(top_k=4, top_p=0.25), key))


def test_clear_choices_are_certain():
    """The tolerance is no excuse: few choices are uncertain."""
    logits = torch.randn(600, 500, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for rule in RULES:
        chosen = choose(logits.clone(), draws(600, **rule), lambda top: torch.full_like(top, 1e-4))
        assert chosen.uncertain.sum() <= 3
