"""Tables of preference, against loops that count pair by pair, and against scipy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.align.pairs.preference_intervals import DRAWS, PromptDraws, interval
from bc2.align.pairs.preference_tables import preference_tables
from bc2.data.pairs.pairs import PairTable

SOURCES = ("zh", "none", "en")


def table_of(
    prompts: Any, data_scores: Any = None, *, sources: Any = None, answers: Any = None
) -> PairTable:
    place = np.arange(len(prompts))
    scores = np.full((len(place), 2), np.nan) if data_scores is None else np.array(data_scores)
    answers = np.stack([2 * place, 2 * place + 1], axis=1) if answers is None else answers
    of = np.zeros(len(place), np.int64) if sources is None else np.array(sources)
    return PairTable(place, np.array(prompts), answers[:, 0], answers[:, 1], of, scores, scores)


def drawn(pairs: int = 400, prompts: int = 60, seed: int = 0) -> tuple[PairTable, Any, Any]:
    """Pairs with ties of all kinds, two sources with scores on scales of their own, one without."""
    rng = np.random.default_rng(seed)
    sources = rng.integers(0, 3, pairs)
    said = np.sort(rng.integers(0, 11, (pairs, 2)), axis=1)[:, ::-1] / 10.0
    said = np.where((sources == 2)[:, None], 9 * said + 1, said)
    said[sources == 1] = np.nan
    lengths = rng.integers(1, 12, (pairs, 2)).astype(np.int32)
    ours = np.round(rng.normal((0.4, 0.0), size=(pairs, 2)), 1) + 0.05 * lengths
    return table_of(rng.integers(0, prompts, pairs), said, sources=sources), ours, lengths


def half(one: float, other: float) -> float:
    return 0.5 if one == other else float(one > other)


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def rows_of(table: PairTable, ours: Any, lengths: Any, some: list[int]) -> dict[str, Any]:
    right = [half(*ours[at]) for at in some]
    longer = [half(*lengths[at]) for at in some]
    return {
        "pairs": len(some),
        "prompts": len({int(table.prompt[at]) for at in some}),
        "ties": sum(ours[at][0] == ours[at][1] for at in some),
        "accuracy": pytest.approx(mean(right)),
        "longer_wins": pytest.approx(mean(longer)),
        "above_length": pytest.approx(
            None if not some else math.fsum(right) / len(some) - math.fsum(longer) / len(some)
        ),
    }


def told(row: dict[str, Any]) -> dict[str, Any]:
    left = ("interval", "longer_interval", "above_length_interval", "low", "high", "source")
    return {name: value for name, value in row.items() if name not in left}


def test_each_row_is_what_a_loop_counts() -> None:
    table, ours, lengths = drawn()
    found = preference_tables(table, ours, lengths, SOURCES)
    every = list(range(len(table)))
    of = {name: found[name] for name in rows_of(table, ours, lengths, every)}
    assert of == rows_of(table, ours, lengths, every)
    assert found["loss"] == pytest.approx(
        mean([math.log(1 + math.exp(-(one - other))) for one, other in ours])
    )
    for number, row in enumerate(found["by_source"]):
        assert row["source"] == SOURCES[number]
        mine = [at for at in every if table.source_ids[at] == number]
        assert told(row) == rows_of(table, ours, lengths, mine)
    widths = {0: 1.0, 2: 9.0}
    for n, row in enumerate(found["by_gap"]):
        assert (row["low"], row["high"]) == (n / 5, (n + 1) / 5)
        mine = []
        for at in every:
            if table.source_ids[at] in widths:
                gap = table.gaps[at] / widths[int(table.source_ids[at])]
                low, high = n / 5 + 1e-9, (n + 1) / 5 + 1e-9
                if low < gap <= high or (n == 0 and gap == 0):
                    mine.append(at)
        assert told(row) == rows_of(table, ours, lengths, mine)
    assert sum(row["pairs"] for row in found["by_gap"]) == np.isin(table.source_ids, [0, 2]).sum()


def test_accuracy_that_is_balanced_by_length() -> None:
    table, ours, lengths = drawn()
    balanced = preference_tables(table, ours, lengths, SOURCES)["length_balanced"]
    sides: dict[bool, list[float]] = {True: [], False: []}
    for (one, other), (long, short) in zip(ours, lengths, strict=True):
        if long != short:
            sides[bool(long > short)].append(half(one, other))
    assert balanced["pairs"] == len(sides[True]) + len(sides[False])
    assert balanced["longer_is_better"] == pytest.approx(mean(sides[True]))
    assert balanced["shorter_is_better"] == pytest.approx(mean(sides[False]))
    # It is the accuracy with weights under which the rule is right in half of the cases.
    weighted = sum(sum(side) / (2 * len(side)) for side in sides.values())
    assert balanced["accuracy"] == pytest.approx(weighted)
    # Length itself as the score is right in half, and beats the rule by nothing.
    found = preference_tables(table, lengths.astype(np.float64), lengths, SOURCES)
    assert found["length_balanced"]["accuracy"] == 0.5
    assert found["above_length"] == 0
    assert found["above_length_interval"] == [0, 0]
    same = preference_tables(table, ours, np.ones_like(lengths), SOURCES)
    assert same["length_balanced"] is None
    assert same["over_length"]["spearman"] is None
    assert same["longer_wins"] == 0.5


def test_calibration_is_that_of_the_answer_with_more() -> None:
    table, ours, lengths = drawn()
    found = preference_tables(table, ours, lengths, SOURCES)["calibration"]
    bins: dict[int, list[tuple[float, float]]] = {}
    for one, other in ours:
        predicted = 1 / (1 + math.exp(-abs(one - other)))
        bins.setdefault(int((predicted - 0.5) / 0.05), []).append((predicted, half(one, other)))
    assert [round((one["low"] - 0.5) / 0.05) for one in found["bins"]] == sorted(bins)
    error = 0.0
    for one in found["bins"]:
        mine = bins[round((one["low"] - 0.5) / 0.05)]
        assert one["pairs"] == len(mine)
        assert one["predicted"] == pytest.approx(mean([p for p, _ in mine]))
        assert one["observed"] == pytest.approx(mean([r for _, r in mine]))
        error += abs(math.fsum(p for p, _ in mine) - math.fsum(r for _, r in mine))
    assert found["error"] == pytest.approx(error / len(ours))


def test_scores_that_are_probabilities_are_calibrated_and_ten_times_them_are_not() -> None:
    rng = np.random.default_rng(3)
    margins = rng.normal(size=20_000)
    wins = rng.random(len(margins)) < 1 / (1 + np.exp(-margins))
    ours = np.where(wins, margins, -margins)[:, None] * [0.5, -0.5]
    table, lengths = table_of(np.arange(len(margins))), np.ones(ours.shape, np.int32)
    assert preference_tables(table, ours, lengths, SOURCES)["calibration"]["error"] < 0.02
    assert preference_tables(table, 10 * ours, lengths, SOURCES)["calibration"]["error"] > 0.15


def by_hand(table: PairTable, right: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    mine: dict[int, list[float]] = {}
    for prompt, one in zip(table.prompt.tolist(), right, strict=True):
        mine.setdefault(prompt, []).append(one)
    prompts, shares = list(mine), []
    for _ in range(4_000):
        some = [
            one for at in rng.integers(0, len(prompts), len(prompts)) for one in mine[prompts[at]]
        ]
        shares.append(sum(some) / len(some))
    return tuple(np.quantile(shares, [0.025, 0.975]))


def test_intervals_draw_prompts_and_not_pairs() -> None:
    # Pairs of a prompt all go one way: drawn as pairs, the interval would be a third as wide.
    rng = np.random.default_rng(1)
    of_prompt = rng.random(40) < 0.7
    prompts = np.repeat(np.arange(40), rng.integers(1, 20, 40))
    right = of_prompt[prompts].astype(np.float64)
    table, ours = table_of(prompts), right[:, None] * [2, 0] + [0, 1]
    lengths = rng.integers(1, 9, ours.shape).astype(np.int32)
    found = preference_tables(table, ours, lengths, SOURCES)
    assert found["interval"] == pytest.approx(by_hand(table, right, 5), abs=0.02)
    longer = np.array([half(*both) for both in lengths])
    assert found["longer_interval"] == pytest.approx(by_hand(table, longer, 6), abs=0.02)
    apart = found["above_length_interval"]
    assert apart == pytest.approx(by_hand(table, right - longer, 7), abs=0.02)
    assert found == preference_tables(table, ours, lengths, SOURCES)


@pytest.mark.slow
def test_an_interval_holds_the_truth_in_95_of_100_cases() -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(400):
        prompts = np.repeat(np.arange(80), 3)
        right = rng.random(240) < rng.beta(3, 2, 80)[prompts]
        draws = PromptDraws(prompts)
        mask = np.ones((240, 1), np.bool_)
        low, high = interval(draws.shares(right[:, None].astype(float), mask)[:, 0]) or (0, 0)
        held += low <= 0.6 <= high
    assert 0.91 < held / 400 < 0.98


def test_one_prompt_has_no_interval() -> None:
    table, ours, lengths = drawn(30, 1)
    found = preference_tables(table, ours, lengths, SOURCES)
    rows = [found, *found["by_gap"], *found["by_source"], *found["calibration"]["bins"]]
    assert {row["interval"] is None for row in rows} == {True}
    assert found["above_length_interval"] is None
    mask = np.array([[True], [True], [False]])
    draws = PromptDraws(np.array([7, 7, 8]))
    assert np.isnan(draws.shares(np.ones((3, 1)), mask)).all()
    assert draws.shares(np.ones((3, 1)), mask).shape == (DRAWS, 1)


def test_scores_over_length_and_beside_the_datas_against_scipy() -> None:
    rng = np.random.default_rng(4)
    # 60 answers, each in several pairs: each counts once.
    ours, lengths = rng.normal(size=60), rng.integers(1, 30, 60)
    said = np.round(ours + rng.normal(size=60))
    answers = np.array([(a, b) for a in range(60) for b in range(a) if said[a] > said[b]])
    table = table_of(np.zeros(len(answers), int), said[answers], answers=answers)
    found = preference_tables(table, ours[answers], lengths[answers], SOURCES)
    over = found["over_length"]
    assert over["answers"] == sum(one["answers"] for one in over["bins"]) == 60
    assert over["spearman"] == pytest.approx(scipy.stats.spearmanr(ours, lengths).statistic)
    before = 0
    for one in over["bins"]:
        mine = [ours[at] for at in range(60) if one["low"] <= lengths[at] <= one["high"]]
        assert before < one["low"] <= one["high"]
        before = one["high"]
        assert one["answers"] == len(mine)
        assert one["low"] <= one["middle"] <= one["high"]
        assert one["mean"] == pytest.approx(np.mean(mine))
        assert one["quartiles"] == pytest.approx(np.percentile(mine, [25, 50, 75]))
    assert len(over["bins"]) > 5
    (row,) = found["data_scores"]
    assert (row["source"], row["answers"]) == ("zh", 60)
    assert row["pearson"] == pytest.approx(scipy.stats.pearsonr(ours, said).statistic)
    assert row["spearman"] == pytest.approx(scipy.stats.spearmanr(ours, said).statistic)


def test_margins_are_all_there() -> None:
    table, ours, lengths = drawn()
    found = preference_tables(table, ours, lengths, SOURCES)["margins"]
    margins = ours[:, 0] - ours[:, 1]
    assert sum(found["pairs"]) == 400
    assert (found["edges"][0], found["edges"][-1]) == (margins.min(), margins.max())
    assert (found["mean"], found["sd"]) == pytest.approx((margins.mean(), margins.std()))


def test_what_is_no_number_is_an_error_and_so_is_nothing() -> None:
    table, ours, lengths = drawn(3)
    for bad in (math.nan, math.inf):
        ours[1, 0] = bad
        with pytest.raises(ValueError, match="1 scores are not finite"):
            preference_tables(table, ours, lengths, SOURCES)
    none = table[np.array([], np.int64)]
    with pytest.raises(ValueError, match="no pairs"):
        preference_tables(none, ours[:0], lengths[:0], SOURCES)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1_000), st.booleans())
def test_all_of_it_is_finite_json_and_in_its_bounds(
    pairs: int, prompts: int, seed: int, flat: bool
) -> None:
    table, ours, lengths = drawn(pairs, prompts, seed)
    found = preference_tables(table, ours * (not flat), lengths, SOURCES)
    json.dumps(found, allow_nan=False)
    for row in (found, *found["by_gap"], *found["by_source"]):
        if row["interval"] is not None:
            low, high = row["interval"]
            assert 0 <= low <= row["accuracy"] <= high <= 1 or row["prompts"] < 5
