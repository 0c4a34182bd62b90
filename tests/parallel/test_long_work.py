"""Work that ranks share: results, failures, ranks that get no further, and what is shown."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bc2.errors import DataError, RunFailed
from bc2.parallel import long_work
from bc2.parallel.long_work import Pace, work_together
from bc2.parallel.mesh import Group

OnRanks = Callable[[int, Callable[[Group], Any]], list[Any]]


def test_all_have_what_each_returned(on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_work, "TELL_S", 0.01)

    def act(rank: Group) -> list[str]:
        def work(pace: Pace) -> str:
            for _ in range(rank.rank * 4):
                pace.count(1)
                time.sleep(0.02)
            return f"of {rank.rank}"

        return work_together(rank, work)

    assert on_ranks(3, act) == 3 * [["of 0", "of 1", "of 2"]]


def test_the_work_is_done_beside_the_main_thread() -> None:
    assert work_together(Group(), lambda pace: threading.get_ident()) != [threading.get_ident()]


def test_one_failure_stops_the_work_of_all_and_is_raised_by_all(on_ranks: OnRanks) -> None:
    def act(rank: Group) -> tuple[str, str | None, float]:
        def work(pace: Pace) -> None:
            if rank.rank == 1:
                raise DataError("no sense in it", where="file.bin")
            while True:
                pace.count(1)
                time.sleep(0.01)

        began = time.monotonic()
        with pytest.raises(DataError) as caught:
            work_together(rank, work)
        return caught.value.what, caught.value.where, time.monotonic() - began

    before = threading.active_count()
    found = on_ranks(3, act)
    assert [what for what, _, _ in found] == 3 * ["no sense in it"]
    assert [where for _, where, _ in found] == ["rank 1, file.bin", "file.bin", "rank 1, file.bin"]
    assert max(took for _, _, took in found) < 5
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before, "work goes on that nobody waits for"


def test_the_limit_is_on_ranks_that_get_no_further_not_on_the_time(on_ranks: OnRanks) -> None:
    hang = threading.Event()

    def act(rank: Group) -> str:
        def work(pace: Pace) -> None:
            # Longer than the limit, and it goes on all the time.
            for _ in range(10):
                time.sleep(0.2)
                pace.count(1)
            if rank.rank in (1, 2):
                hang.wait(30)

        began = time.monotonic()
        with pytest.raises(RunFailed) as caught:
            work_together(rank, work, patience_s=1.0)
        assert 2.5 < time.monotonic() - began < 10
        return caught.value.what

    try:
        assert on_ranks(4, act) == 4 * ["ranks 1-2 got no further for 1 s"]
    finally:
        hang.set()


def test_a_long_one_shows_how_far_all_are(
    on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[str, float, str]] = []
    done: list[float] = []

    class Bar:
        def __init__(self, title: str, total: float, unit: str):
            shown.append((title, total, unit))

        def __enter__(self) -> Callable[[float], None]:
            return done.append

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(long_work, "progress", Bar)
    monkeypatch.setattr(long_work, "TELL_S", 0.01)
    monkeypatch.setattr(long_work, "_SILENT_S", 0.1)

    def act(rank: Group) -> None:
        def work(pace: Pace) -> None:
            for _ in range(10):
                pace.count(10**9)
                time.sleep(0.03)

        work_together(rank, work, title="checking", total=20 * 10**9)

    on_ranks(2, act)
    # Each rank asks; the console shows the first rank's alone.
    assert set(shown) == {("checking", 20.0, "GB")}
    assert sum(done) == pytest.approx(len(shown) * 20.0)
    shown.clear()
    work_together(Group(), lambda pace: pace.count(5), title="short", total=5)
    work_together(Group(), lambda pace: time.sleep(0.3))
    assert shown == []


def test_a_signal_ends_the_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(pace: Pace) -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), 2)
        time.sleep(5)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        work_together(Group(), work)
    assert time.monotonic() - began < 2
