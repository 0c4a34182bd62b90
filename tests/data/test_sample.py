"""The tokenizer's sample: within the budget, by weight, spread over the whole corpus."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.corpus import read_corpus
from bc2.data.sample import sample_texts
from bc2.errors import DataError, RecipeError


def sized(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


@pytest.fixture(scope="module")
def natural(corpus) -> dict[str, list[str]]:
    return {s: [d.text for d in read_corpus(corpus, "train", s)] for s in ("en", "zh")}


def test_a_budget_for_everything_takes_everything(corpus, natural):
    assert list(sample_texts(corpus, 10**9, {}, 0)) == natural["en"] + natural["zh"]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    budget=st.integers(5_000, 60_000),
    weights=st.fixed_dictionaries({}, optional={n: st.floats(0.2, 5) for n in ("en", "zh")}),
)
def test_the_budget_is_kept_and_shared_by_weight(corpus, natural, seed, budget, weights):
    texts = list(sample_texts(corpus, budget, weights, seed))
    assert texts == list(sample_texts(corpus, budget, weights, seed))
    wanted = {n: sized(natural[n]) * weights.get(n, 1.0) for n in natural}
    scale = min(1.0, budget / sum(wanted.values()))
    for name, mine in natural.items():
        got = sized([t for t in texts if t in set(mine)])
        longest = max(len(t.encode()) for t in mine)
        assert wanted[name] * scale - longest - 1 <= got <= wanted[name] * scale
    assert sized(texts) <= budget


def test_the_sample_is_spread_over_the_corpus_and_depends_on_the_seed(corpus, natural):
    en = natural["en"]
    one, two = (
        {en.index(t) for t in sample_texts(corpus, sized(en) // 4, {"zh": 0}, s)} for s in (0, 1)
    )
    for picked in (one, two):
        quarters = Counter(at * 4 // len(en) for at in picked)
        # 135 of 540 expected: 34 a quarter, sigma 5
        assert min(quarters.values()) > 15, quarters
    assert len(one & two) < 0.5 * len(one)


def test_a_weight_above_one_repeats_documents(corpus, natural):
    texts = list(sample_texts(corpus, 10**9, {"en": 2.5, "zh": 0}, 0))
    counts = Counter(texts)
    assert set(counts) == set(natural["en"])
    assert set(counts.values()) == {2, 3}
    assert sized(texts) == pytest.approx(2.5 * sized(natural["en"]), rel=0.01)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"enn": 1.0}, "did you mean 'en'"),
        ({"en": -1.0}, "-1.0"),
        ({"en": float("inf")}, "inf"),
        ({"en": 0.0, "zh": 0.0}, "every source has weight 0"),
    ],
)
def test_impossible_weights(corpus, weights, says):
    with pytest.raises(RecipeError) as caught:
        sample_texts(corpus, 1000, weights, 0)
    assert says in str(caught.value)


def test_a_budget_below_one_document(corpus):
    with pytest.raises(DataError, match="not one document"):
        sample_texts(corpus, 3, {}, 0)
