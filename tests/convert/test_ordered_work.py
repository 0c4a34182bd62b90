"""Work by several threads, whose results come in order."""

from __future__ import annotations

import random
import threading
import time

import pytest
import torch

from bc2.convert.ordered_work import beside, in_order


def test_in_order_whatever_takes_long() -> None:
    chance = random.Random(0)

    def work(number: int) -> int:
        time.sleep(chance.random() / 500)
        return number * number

    assert list(in_order(work, range(100))) == [n * n for n in range(100)]
    assert list(in_order(work, [])) == []


def test_no_more_is_begun_than_is_wanted() -> None:
    begun: list[int] = []
    results = in_order(lambda n: begun.append(n) or n, range(1000))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    assert len(begun) < 100
    results.close()
    assert threading.active_count() < 20


def test_an_error_comes_in_its_place() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = in_order(work, range(10))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    list(in_order(lambda n: torch.ones(n).sum(), range(1, 9)))
    assert torch.get_num_threads() == before


def test_all_is_done_in_order_when_the_context_ends() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.001)
        done.append(number)

    with beside(work) as take:
        for number in range(30):
            take(number)
    assert done == list(range(30))


def test_what_goes_wrong_beside_is_raised() -> None:
    def work(number: int) -> None:
        if number == 2:
            raise OSError("full")

    def go() -> None:
        with beside(work) as take:
            for number in range(3):
                take(number)

    with pytest.raises(OSError, match="full"):
        go()
