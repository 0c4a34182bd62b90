"""The order of samples: brute force, exactness of epochs and shares, quality of shuffling."""

from __future__ import annotations

from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.mixture import MAX_BLOCK, MIN_BLOCK, Mixture, permute, stratum_weights
from bc2.errors import RecipeError

WINDOWS = {"zh": 700, "en": 311, "code": 1}


def located(mixture: Mixture, first: int, count: int) -> list[tuple[int, int, int]]:
    return list(
        zip(*(a.tolist() for a in mixture.locate(np.arange(first, first + count))), strict=True)
    )


sources_st = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 400), min_size=1, max_size=4
)


@settings(max_examples=25, deadline=None)
@given(windows=sources_st, seed=st.integers(0, 2**63), data=st.data())
def test_epochs_visit_each_window_once_and_draws_follow_in_order(windows, seed, data):
    """Against sequential counting: the k-th draw of a source is draw k % n of epoch k // n."""
    weights = data.draw(
        st.none() | st.fixed_dictionaries({name: st.floats(0.05, 5.0) for name in windows})
    )
    mixture = Mixture(windows, weights, seed)
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for source_id, window, epoch in located(mixture, 0, 3 * mixture.block):
        seen[mixture.sources[source_id]].append((epoch, window))
    for source, draws in seen.items():
        n = windows[source]
        assert [epoch for epoch, _ in draws] == [k // n for k in range(len(draws))]
        for begin in range(0, len(draws) - n + 1, n):
            assert sorted(w for _, w in draws[begin : begin + n]) == list(range(n))
        assert all(0 <= window < n for _, window in draws)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    first=st.integers(0, 10**12),
    cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
)
def test_an_index_means_the_same_in_any_batch(seed, first, cuts):
    mixture = Mixture(WINDOWS, None, seed)
    indices = np.arange(first, first + sum(cuts))
    whole = np.stack(mixture.locate(indices))
    parts = [np.stack(mixture.locate(part)) for part in np.split(indices, np.cumsum(cuts)[:-1])]
    assert np.array_equal(whole, np.concatenate(parts, axis=1))
    shuffled = np.random.default_rng(0).permutation(len(indices))
    assert np.array_equal(whole[:, shuffled], np.stack(mixture.locate(indices[shuffled])))
    ranks = [np.stack(Mixture(WINDOWS, None, seed).locate(indices[r::3])) for r in range(3)]
    assert all(np.array_equal(whole[:, r::3], ranks[r]) for r in range(3))


@settings(max_examples=50, deadline=None)
@given(
    weights=st.fixed_dictionaries({name: st.floats(0.01, 10) for name in WINDOWS}),
    block=st.integers(0, 10**9),
)
def test_shares_are_exact_to_one_sample_at_every_block_border(weights, block):
    mixture = Mixture(WINDOWS, weights, 1)
    before, after = mixture.draws_before(block), mixture.draws_before(block + 1)
    assert before.sum() == block * mixture.block
    assert after.sum() - before.sum() == mixture.block
    exact = {name: Fraction(weight) for name, weight in weights.items()}
    drawn = np.bincount(
        mixture.locate(np.arange(block, block + 1) * mixture.block + np.arange(mixture.block))[0],
        minlength=3,
    )
    assert np.array_equal(drawn, after - before)
    for source, count in zip(mixture.sources, before, strict=True):
        share = exact[source] / sum(exact.values())
        assert mixture.share(source) == pytest.approx(float(share))
        assert abs(int(count) - share * block * mixture.block) < 1


def test_natural_weights_see_every_window_once_in_an_epoch_up_to_one_block():
    windows = {"a": 50_000, "b": 3_000, "c": 123}
    mixture = Mixture(windows, None, 3)
    total = sum(windows.values())
    source_ids, _, epochs = mixture.locate(np.arange(total))
    for number, source in enumerate(mixture.sources):
        drawn = int((source_ids == number).sum())
        assert abs(drawn - windows[source]) <= 20, (source, drawn)
    assert (epochs == 1).sum() < 40
    assert epochs.max() <= 1


def test_the_same_seed_gives_this_order_for_ever():
    """Golden values: a change here breaks the resumption of every run."""
    mixture = Mixture({"b": 1000, "a": 500}, {"a": 1.0, "b": 3.0}, 42)
    assert mixture.sources == ["a", "b"]
    assert located(mixture, 0, 6) == GOLDEN_HEAD
    assert located(mixture, 10**9, 3) == GOLDEN_FAR


def test_the_order_of_naming_sources_does_not_matter():
    one, two = Mixture({"a": 9, "b": 90}, None, 5), Mixture({"b": 90, "a": 9}, None, 5)
    assert located(one, 77, 500) == located(two, 77, 500)


def test_seeds_sources_and_epochs_differ():
    def order(seed: int, source: str, epoch: int) -> list[int]:
        mixture = Mixture({source: 1000}, None, seed)
        return mixture.locate(np.arange(epoch * 1000, epoch * 1000 + 1000))[1].tolist()

    orders = [order(s, n, e) for s in (0, 1) for n in ("x", "y") for e in (0, 1)]
    for i, one in enumerate(orders):
        for two in orders[:i]:
            # Two random permutations agree at Poisson(1) places.
            assert sum(a == b for a, b in zip(one, two, strict=True)) < 9


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 64, 255, 1000])
def test_permutations_are_uniform(n):
    """Over many keys, every place goes everywhere equally often (chi-square, 5 sigma)."""
    trials = 4000
    keys = np.arange(trials, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for place in {0, n // 2, n - 1}:
        places = np.full(trials, place)
        went = permute(places, np.full(trials, n), keys)
        expected = trials / n
        chi2 = float(((np.bincount(went, minlength=n) - expected) ** 2 / expected).sum())
        assert chi2 < (n - 1) + 5 * (2 * max(n - 1, 1)) ** 0.5, (n, place, chi2)


def test_small_permutations_reach_every_order():
    """All 24 orders of four, about equally often: Feistel alone would reach half of them."""
    trials = 24_000
    keys = np.repeat(np.arange(trials, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15), 4)
    went = permute(np.tile(np.arange(4), trials), np.full(4 * trials, 4), keys).reshape(-1, 4)
    counts = Counter(map(tuple, went.tolist()))
    assert len(counts) == 24
    chi2 = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi2 < 23 + 5 * 46**0.5


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n, key):
    went = permute(np.arange(n), np.full(n, n), np.full(n, key, dtype=np.uint64))
    assert np.array_equal(np.sort(went), np.arange(n))


def test_neighbours_do_not_stay_neighbours():
    n = 100_000
    went = permute(np.arange(n), np.full(n, n), np.full(n, 7, dtype=np.uint64))
    correlation = np.corrcoef(went[:-1], went[1:])[0, 1]
    assert abs(correlation) < 5 / n**0.5
    assert np.abs(np.diff(went)).mean() == pytest.approx(n / 3, rel=0.02)


def test_the_order_within_a_block_is_shuffled():
    mixture = Mixture({"a": 10**6, "b": 10**6}, None, 0)
    ids = mixture.locate(np.arange(20 * mixture.block))[0]
    runs = int((np.diff(ids) != 0).sum())
    assert runs == pytest.approx(len(ids) / 2, rel=0.05)


def test_huge_sources_and_far_indices_cost_nothing():
    windows = {"web": 634_765_625_000, "books": 4_000_000_000}
    mixture = Mixture(windows, None, 1)
    sources, places, epochs = mixture.locate(np.array([0, 10**15, 3 * 10**17]))
    assert all(0 <= p < windows[mixture.sources[s]] for s, p in zip(sources, places, strict=True))
    assert epochs.tolist()[0] == 0
    assert epochs[2] == pytest.approx(3e17 / sum(windows.values()), rel=1e-3)


def test_a_rare_source_gets_a_larger_block():
    assert Mixture({"a": 10, "b": 10}, None, 0).block == MIN_BLOCK
    rare = Mixture({"a": 10, "b": 10}, {"a": 1.0, "b": 3e-4}, 0)
    assert rare.block == 4096
    assert (rare.locate(np.arange(rare.block))[0] == 1).sum() >= 1


@pytest.mark.parametrize(
    ("windows", "weights", "says"),
    [
        ({"a": 5}, {"a": 1.0, "aa": 1.0}, "did you mean 'a'"),
        ({"a": 5, "b": 5}, {"a": 1.0}, "no weight for source 'b'"),
        ({"a": 5, "b": 5}, {"a": 1.0, "b": -0.1}, "-0.1"),
        ({"a": 5, "b": 5}, {"a": 1.0, "b": float("nan")}, "nan"),
        ({"a": 5, "b": 5}, {"a": 0.0, "b": 0.0}, "every source has weight 0"),
        ({"a": 5, "b": 0}, {"a": 1.0, "b": 1.0}, "fewer tokens"),
        ({"a": 0}, None, "no source has as many tokens"),
        ({"a": 5, "b": 5}, {"a": 1.0, "b": 1 / (2 * MAX_BLOCK)}, "less than one sample"),
    ],
)
def test_impossible_weights(windows, weights, says):
    with pytest.raises(RecipeError) as caught:
        Mixture(windows, weights, 0)
    assert says in str(caught.value)


def test_a_source_of_weight_zero_never_comes():
    mixture = Mixture({"a": 5, "b": 5, "empty": 0}, {"a": 1.0, "b": 0.0, "empty": 0.0}, 0)
    assert {s for s, _, _ in located(mixture, 0, 5000)} == {0}


def test_negative_indices_are_refused():
    with pytest.raises(IndexError):
        Mixture(WINDOWS, None, 0).locate(np.array([-1]))


# -- strata --------------------------------------------------------------------------------

STRATA = {"web.c0": 60, "web.c1": 20, "web.rest": 0, "law": 20}
CARRIED = {"web.c0": 100, "web.c1": 300, "web.rest": 50, "law": 550}


def source_of(name: str) -> str:
    return name.split(".")[0]


def weights(asked: dict[str, float], carried: dict[str, int] | None = CARRIED) -> dict | None:
    return stratum_weights(STRATA, asked, carried, source_of)


def test_weights_of_the_corpus_hold_where_the_recipe_has_none():
    """A stratum without a window leaves its weight to its source."""
    assert weights({}) == {
        "web.c0": Fraction(450, 4),
        "web.c1": Fraction(450 * 3, 4),
        "web.rest": 0,
        "law": 550,
    }
    mixture = Mixture(STRATA, weights({}), 0)
    assert mixture.share("law") == pytest.approx(0.55)
    assert mixture.share("web.c1") == pytest.approx(0.45 * 0.75)
    assert mixture.share("web.rest") == 0


def test_natural_shares_where_neither_has_weights():
    assert weights({}, None) is None
    assert stratum_weights({"a": 0}, {}, {"a": 1}, source_of) is None  # Mixture says why


def test_a_source_is_the_sum_of_its_strata():
    found = weights({"web": 3.0, "law": 1.0})
    assert found == {"web.c0": Fraction(3, 4), "web.c1": Fraction(9, 4), "web.rest": 0, "law": 1}
    natural = weights({"web": 3.0, "law": 1.0}, None)
    assert natural == {"web.c0": Fraction(9, 4), "web.c1": Fraction(3, 4), "web.rest": 0, "law": 1}
    zeros = dict.fromkeys(CARRIED, 0)
    assert weights({"web": 3.0, "law": 1.0}, zeros) == natural


def test_strata_by_name():
    asked = {"web.c0": 1.0, "web.c1": 0.0, "web.rest": 0.0, "law": 2.0}
    assert weights(asked) == asked


def test_a_source_without_windows_leaves_its_weight_to_the_others():
    found = stratum_weights({"a.x": 9, "b.x": 0}, {}, {"a.x": 1, "b.x": 9}, source_of)
    assert found == {"a.x": 1, "b.x": 0}
    asked = stratum_weights({"a.x": 9, "b.x": 0}, {"a": 1.0, "b": 1.0}, None, source_of)
    with pytest.raises(RecipeError, match="fewer tokens"):
        Mixture({"a.x": 9, "b.x": 0}, asked, 0)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"wbe": 1.0, "law": 1.0}, "did you mean 'web'"),
        ({"web": 1.0, "web.c1": 1.0, "law": 1.0}, "a weight of its own and one with its source"),
        ({"web": -1.0, "law": 1.0}, "give 0 or more"),
        ({"web": float("inf"), "law": 1.0}, "give 0 or more"),
    ],
)
def test_impossible_weights_of_strata(asked, says):
    with pytest.raises(RecipeError) as caught:
        weights(asked)
    assert says in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(
    windows=st.fixed_dictionaries({n: st.integers(0, 500) for n in CARRIED}),
    carried=st.none() | st.fixed_dictionaries({n: st.integers(0, 9) for n in CARRIED}),
    asked=st.just({}) | st.fixed_dictionaries({n: st.floats(0.1, 9) for n in ("web", "law")}),
)
def test_no_weight_is_lost_or_made(windows, carried, asked):
    found = stratum_weights(windows, asked, carried, source_of)
    if found is None:
        assert not asked
        assert carried is None or not any(windows.values())
        return
    assert found.keys() == windows.keys()
    for source in ("web", "law"):
        mine = [name for name in windows if source_of(name) == source]
        there = any(windows[name] for name in mine)
        total = sum(found[name] for name in mine)
        if asked:
            assert total == Fraction(asked[source])
        else:
            assert total == (sum(carried[name] for name in mine) if there else 0)
        assert not there or all(windows[name] or not found[name] for name in mine)


def test_recipe_weights_without_strata_are_as_before():
    """The shares of a run that began before there were strata."""
    asked = {"zh": 0.3, "en": 0.1, "code": 0.6}
    found = stratum_weights(WINDOWS, asked, None, lambda name: name)
    assert located(Mixture(WINDOWS, found, 4), 0, 99) == located(Mixture(WINDOWS, asked, 4), 0, 99)


def test_epochs():
    mixture = Mixture({"a": 100, "b": 50, "c": 0}, {"a": 1.0, "b": 3.0, "c": 0.0}, 0)
    assert mixture.epochs(400) == {"a": 1.0, "b": 6.0, "c": 0.0}


GOLDEN_HEAD = [(0, 28, 0), (1, 350, 0), (1, 921, 0), (0, 461, 0), (1, 913, 0), (1, 336, 0)]
GOLDEN_FAR = [(1, 158, 749999), (0, 86, 500000), (1, 167, 749999)]
