"""A part that no stage changed becomes a hard link; it is not written again."""

from __future__ import annotations

import os
from typing import ClassVar

import pyarrow as pa
import pytest

from bc2.data.prep.part_files import read_part_file, write_part_file
from bc2.data.prep.segment import Segment, SegmentTask, run_part
from bc2.data.prep.stages.base import Outcome, PrepStage, dropped, remaining, removed


class Shortest(PrepStage):
    """Drops texts of fewer letters."""

    name: ClassVar[str] = "shortest"
    version: ClassVar[int] = 1
    reasons: ClassVar[tuple[str, ...]] = ("short",)

    def __init__(self, least: int):
        self.least = least

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        gone = pa.array([len(text) < self.least for text in table["text"].to_pylist()], pa.bool_())
        return Outcome(remaining(table, gone), dropped(table, gone, "short"))


class Upper(PrepStage):
    """Changes texts, and removes nothing."""

    name: ClassVar[str] = "upper"
    version: ClassVar[int] = 1
    reasons: ClassVar[tuple[str, ...]] = ()

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        texts = pa.array([text.upper() for text in table["text"].to_pylist()], pa.large_string())
        return Outcome(table.set_column(2, table.schema.field(2), texts), removed([]))


@pytest.fixture
def task(tmp_path, records):
    write_part_file(records(["one", "three"]), tmp_path / "p.arrow")
    (tmp_path / "out").mkdir()

    def task(*stages: PrepStage) -> SegmentTask:
        segment = Segment(stages, None)
        return SegmentTask(segment, tmp_path / "p.arrow", tmp_path / "out", "p", None, None)

    return task


def texts(path) -> list[str]:
    return read_part_file(path)["text"].to_pylist()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_an_unchanged_part_is_the_same_file(task, links, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    unchanged = task(Shortest(2))
    facts = run_part(unchanged)
    target = unchanged.folder / "p.arrow"
    assert facts["documents"] == 2
    assert os.path.samefile(unchanged.source, target) == links
    unchanged.source.unlink()
    assert texts(target) == ["one", "three"]


@pytest.mark.parametrize(
    ("stage", "expected"), [(Shortest(4), ["three"]), (Upper(), ["ONE", "THREE"])]
)
def test_what_came_in_is_never_written_through_a_second_name(task, stage, expected):
    run_part(task())  # as a killed run leaves it
    run_part(task(stage))
    assert texts(task().folder / "p.arrow") == expected
    assert texts(task().source) == ["one", "three"]
