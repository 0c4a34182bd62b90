"""Event files hold each step once, for TensorBoard's own readers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from bc2.train.logs.event_files import EventFile, event_files


def fill(folder: Path, first: int, last: int, attempt: int, **begin: set[str]) -> None:
    """An attempt that begins behind step `first` and is killed at step `last`."""
    file = EventFile(folder, first, **begin)
    for step in range(first + 1, last + 1):
        file.add(step, {"loss": 100 * attempt + step, "lr": 0.5})


def raw(folder: Path) -> list[tuple[int, str, float]]:
    """What a reader that knows of no restarts finds."""
    events = [
        Event.FromString(record)
        for path in event_files(folder)
        for record in RawEventFileLoader(str(path)).Load()
    ]
    return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]


def seen(events: EventAccumulator, tag: str = "loss") -> list[tuple[int, float]]:
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def expected(*attempts: range) -> list[tuple[int, float]]:
    return [(step, 100.0 * n + step) for n, steps in enumerate(attempts, 1) for step in steps]


def test_each_step_is_there_once_with_the_values_of_the_last_attempt(tmp_path: Path) -> None:
    fill(tmp_path, -1, 70, 1)
    fill(tmp_path, 40, 55, 2)
    fill(tmp_path, 40, 90, 3)
    fill(tmp_path, 20, 30, 4)
    wanted = [*expected(range(21)), *((step, 400.0 + step) for step in range(21, 31))]
    assert seen(EventAccumulator(str(tmp_path))) == wanted
    assert [(step, value) for step, tag, value in raw(tmp_path) if tag == "loss"] == wanted
    assert len(raw(tmp_path)) == 2 * len(wanted)


def test_a_reader_that_has_the_files_open_drops_what_was_taken_back(tmp_path: Path) -> None:
    fill(tmp_path, -1, 70, 1)
    events = EventAccumulator(str(tmp_path))
    assert seen(events) == expected(range(71))
    fill(tmp_path, 40, 90, 2)
    assert seen(events) == expected(range(41), range(41, 91))
    fill(tmp_path, -1, 3, 3)
    assert seen(events) == [(step, 300.0 + step) for step in range(4)]


def test_files_are_in_order_where_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt, at in enumerate((9e8, 9e8, 5e8, 1.2e9), 1):
        monkeypatch.setattr("time.time", lambda at=at: at)
        fill(tmp_path, 10 * attempt - 11, 10 * attempt, attempt)
    assert len(event_files(tmp_path)) == 4
    steps = [step for step, _ in seen(EventAccumulator(str(tmp_path)))]
    assert steps == list(range(41))


def test_an_evaluation_that_comes_again_is_there_once(tmp_path: Path) -> None:
    """A run that was stopped before it evaluated its last step does so when it goes on."""
    fill(tmp_path, -1, 4, 1)
    for value in (2.0, 3.0):
        file = EventFile(tmp_path, 4, without={"heldout_loss"})
        file.add(4, {"heldout_loss": value})
    assert seen(EventAccumulator(str(tmp_path)), "heldout_loss") == [(4, 3.0)]
    assert seen(EventAccumulator(str(tmp_path))) == expected(range(5))
    fill(tmp_path, 4, 6, 2)
    assert seen(EventAccumulator(str(tmp_path)), "heldout_loss") == [(4, 3.0)]


@pytest.mark.parametrize("rest", [b"", bytes(40), b"\xff" * 9], ids=["cut", "zeros", "short"])
def test_an_event_that_a_crash_left_unfinished_is_removed(tmp_path: Path, rest: bytes) -> None:
    fill(tmp_path, -1, 4, 1)
    (path,) = event_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + rest if rest else whole[:-5])
    fill(tmp_path, 4, 6, 2)
    kept = 5 if rest else 4
    assert path.read_bytes() == whole or not rest
    assert seen(EventAccumulator(str(tmp_path))) == expected(range(kept), range(5, 7))


def test_the_files_of_torchs_writer_are_read_too(tmp_path: Path) -> None:
    """As bc2 wrote them before."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(71):
            writer.add_scalar("loss", 100.0 + step, step)
    fill(tmp_path, 40, 90, 2)
    assert seen(EventAccumulator(str(tmp_path))) == expected(range(41), range(41, 91))
    assert [step for step, tag, _ in raw(tmp_path)[:41]] == list(range(41))
