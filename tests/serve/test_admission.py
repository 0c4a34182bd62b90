"""How many may wait, and when the others are told to come again."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from bc2.serve.admission import Admission
from bc2.serve.protocol.api_error import ApiError


def refused(admission: Admission, count: int) -> ApiError:
    with pytest.raises(ApiError) as caught, admission.taken(count, "n"):
        pytest.fail("it was taken")
    return caught.value


def test_as_many_are_taken_as_run_and_wait() -> None:
    admission = Admission(running=2, waiting=3)
    with ExitStack() as held:
        for _ in range(5):
            held.enter_context(admission.taken(1, "n"))
        assert refused(admission, 1).status == 429
    with admission.taken(5, "n"):
        assert refused(admission, 1).status == 429
    never = refused(admission, 6)
    assert (never.status, never.param, never.retry_after) == (400, "n", None)


def test_what_fails_gives_its_place_back() -> None:
    admission = Admission(running=1, waiting=0)
    with pytest.raises(ZeroDivisionError), admission.taken(1, "n"):
        1 / 0  # noqa: B018
    with admission.taken(1, "n"):
        pass


def test_the_time_to_wait_follows_from_how_fast_answers_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("bc2.serve.admission.time.monotonic", lambda: now[0])
    admission = Admission(running=4, waiting=0)
    with admission.taken(4, "n"):
        assert refused(admission, 1).retry_after == 1  # nothing is known yet
    admission = Admission(running=4, waiting=0)
    for _ in range(10):  # one in four seconds
        with admission.taken(1, "n"):
            now[0] += 4.0
    with admission.taken(4, "n"):
        assert refused(admission, 2).retry_after == 8
        now[0] += 1000.0
        assert refused(admission, 4).retry_after == 60
