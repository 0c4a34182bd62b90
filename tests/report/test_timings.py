"""How long each step took, as a table has it."""

from __future__ import annotations

from bc2.report.timings import COLUMNS, Timing, lines, timings

ROWS = [
    {"step": "reading", "bytes": 3_000_000, "seconds": 1.5, "settling": 0.0},
    {"step": "near", "bytes": 2_000_000, "seconds": 4.0, "settling": 3.0},
    {"step": "parts", "bytes": None, "seconds": 0.5, "settling": 0.0},
    {"step": "writing", "bytes": 0, "seconds": 0, "settling": 0},
]


def test_a_line_a_step_and_one_of_all() -> None:
    found = [[str(cell).strip() for cell in line] for line in lines(timings(ROWS))]
    assert found == [
        ["reading", "3.00 MB", "1.5", "-", "25.0%", "2.0"],
        ["near", "2.00 MB", "4.0", "3.0", "66.7%", "0.5"],
        ["parts", "-", "0.5", "-", "8.3%", "-"],
        ["writing", "0 B", "0.0", "-", "0.0%", "-"],
        ["in all", "3.00 MB", "6.0", "3.0", "100.0%", "0.5"],
    ]
    assert all(len(line) == len(COLUMNS) for line in found)
    assert lines([]) == []


def test_the_rate_is_of_the_text_that_came_in() -> None:
    assert Timing("near", 2_000_000, 4.0, 3.0).as_json() == {
        "step": "near", "bytes": 2_000_000, "seconds": 4.0, "settling": 3.0,
        "mb_per_second": 0.5,
    }  # fmt: skip
    assert Timing("parts", None, 1.0, 0.0).rate is None
    assert Timing("x", 1, 0.0, 0.0).rate is None
    assert lines([Timing("x", 1, 0.0, 0.0)])[0][4].strip() == "-"  # type: ignore[attr-defined]
