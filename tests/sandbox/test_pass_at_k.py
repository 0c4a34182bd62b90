from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.errors import UsageError
from bc2.sandbox.pass_at_k import pass_at_k


@given(st.data())
def test_it_is_the_share_of_choices_with_a_correct_one(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 9))
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    passed = [index < correct for index in range(n)]
    choices = [any(choice) for choice in combinations(passed, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


def test_many_samples_do_not_overflow() -> None:
    # 1 - C(9_999, 100) / C(10_000, 100) = 100 / 10_000
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01, rel=1e-10)
    assert pass_at_k(10_000, 0, 100) == 0.0
    assert pass_at_k(10_000, 10_000, 1) == 1.0


def test_the_naive_estimate_is_another() -> None:
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(10, 3, 5) > 1 - (1 - 3 / 10) ** 5


@pytest.mark.parametrize(
    ("n", "correct", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0), (0, 0, 1)]
)
def test_impossible_counts_are_refused(n: int, correct: int, k: int) -> None:
    with pytest.raises(UsageError):
        pass_at_k(n, correct, k)
