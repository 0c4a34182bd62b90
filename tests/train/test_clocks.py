"""A wall clock that jumps changes nothing: not what is gone on from, not what comes out."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Any

import pytest

from bc2.errors import Interrupted
from bc2.registry import Registry
from bc2.registry import manifest as manifests

YEAR_S = 365 * 86400.0


class Clock:
    """Sets the wall clock of this process: ``time.time`` and the registry's ``datetime.now``.

    Files keep the system's time; nothing here reads it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.jumped_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.jumped_s)
        clock = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=clock.jumped_s)

        monkeypatch.setattr(manifests, "datetime", Now)

    def jump(self, years: float) -> None:
        self.jumped_s += years * YEAR_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def timing() -> list[dict[str, Any]]:
    (folder,) = Registry.open().runs.iterdir()
    return [json.loads(line) for line in (folder / "timing.jsonl").read_bytes().splitlines()]


def began() -> list[tuple[str, int]]:
    return [(row["event"], row["step"]) for row in timing() if row["event"] in ("start", "resume")]


def created() -> dict[int, str]:
    checkpoints = Registry.open().list("checkpoint")
    return {a.position.step: a.created for a in checkpoints if a.position and not a.finished}


def check_durations() -> None:
    """Within an attempt time goes on, whatever the wall clock says."""
    elapsed = 0.0
    for row in timing():
        if row["event"] in ("start", "resume"):
            elapsed = 0.0
        assert row["elapsed"] >= elapsed
        elapsed = row["elapsed"]
        durations = [value for name, value in row.items() if name.endswith("_s")]
        assert all(value >= 0 for value in [*durations, *row.get("parts", {}).values()])
    assert elapsed < 1000


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("years", [-1, 1])
def test_a_jump_within_a_run(train, straight, at_sample, clock, years) -> None:
    """Between the checkpoints of steps 4 and 8; then the run goes on from the further one."""
    at_sample({40: lambda: clock.jump(years), 72: stop})
    with pytest.raises(Interrupted):
        train()
    when = created()
    assert sorted(when) == [8, 9]
    walls = [row["time"] for row in timing()]
    assert (min(b - a for a, b in pairwise(walls)) < -YEAR_S / 2) == (years < 0)
    clock.jump(-years)
    assert train().digest == straight().digest
    assert began() == [("start", 0), ("resume", 9)]
    check_durations()


def test_the_furthest_is_gone_on_from_and_not_the_newest(train, straight, at_sample, clock) -> None:
    def set_back() -> None:
        until = time.monotonic() + 20
        while 4 not in created():
            assert time.monotonic() < until
            time.sleep(0.01)
        clock.jump(-3)

    at_sample({40: set_back, 72: stop})
    with pytest.raises(Interrupted):
        train("pretrain.keep_checkpoints=0")
    when = created()
    assert max(when, key=lambda step: when[step]) == 4, "the clock was not set back"
    assert train("pretrain.keep_checkpoints=0").digest == straight().digest
    assert began()[1] == ("resume", 9)


@pytest.mark.parametrize("years", [-1, 1])
def test_a_fresh_run_by_another_clock(train, straight, at_sample, clock, years) -> None:
    """Begun anew, interrupted, and gone on with: only what it made itself is gone on from."""
    registry = Registry.open()
    at_sample({72: stop})
    with pytest.raises(Interrupted):
        train("pretrain.keep_checkpoints=0")
    for artifact in registry.list("checkpoint"):
        # tagged: it outlives --fresh, and must not be gone on from
        assert artifact.position is not None
        if artifact.position.step == 8:
            registry.tag(artifact, "kept")
    clock.jump(years)
    at_sample({16: stop})
    with pytest.raises(Interrupted, match="stopped at step 2 of 12"):
        train("pretrain.keep_checkpoints=0", fresh=True)
    assert sorted(created()) == [2, 8]
    clock.jump(-2 * years)
    at_sample({72: stop})
    with pytest.raises(Interrupted, match="stopped at step 9 of 12"):
        train("pretrain.keep_checkpoints=0")
    # the tagged one was made again to the bit: now it may be gone on from
    for artifact in registry.list("checkpoint"):
        if artifact.position and artifact.position.step == 9:
            registry.remove(artifact)
    assert train("pretrain.keep_checkpoints=0").digest == straight().digest
    assert began() == [("start", 0), ("start", 0), ("resume", 2), ("resume", 8)]
    check_durations()


def test_a_finished_run_is_found_by_any_clock(train, clock) -> None:
    first = train()
    clock.jump(-2)
    assert train("pretrain.seed=1").key != first.key
    assert train().digest == first.digest
    # "newest" is by the time that was recorded: said so in docs/training.md
    assert Registry.open().newest("checkpoint").digest == first.digest
