"""What is drawn on a terminal while bars run."""

from __future__ import annotations

import io
import sys

import pytest

from bc2.console import board, note, progress, show_on_stderr, table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make stderr a terminal. Not a fixture: pytest sets stderr anew when the test is called."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return made


def test_a_bar_runs_below_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = terminal(monkeypatch)
    with board() as show:
        show(table(["member"], [["first"]]))
        with progress("training", 2, "steps") as step:
            step(1, "loss 3.1")
            note("a note above both")
            show(table(["member"], [["second"]]))
        show(table(["member"], [["third"]]))
    shown = drawn.getvalue()
    last = shown[shown.rindex("second") :]
    assert "training" in shown
    assert "loss 3.1" in shown
    assert "a note above both" in shown
    # below the table, in the same drawing
    assert shown.index("second") < shown.rindex("loss 3.1")
    assert "third" in last
    assert "loss 3.1" not in last[last.index("third") :]


def fail_with_a_board() -> None:
    with board() as show:
        show(table(["member"], [["first"]]))
        raise ZeroDivisionError


def test_bars_run_alone_after_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        fail_with_a_board()
    with progress("alone", 1) as step:
        step(1)
    assert "100%" in drawn.getvalue()


def test_no_board_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with board() as show:
        show(table(["member"], [["first"]]))
    show_on_stderr(table(["member", "N"], [["first", 1234]]))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split() == ["member", "N", "first", "1,234"]
