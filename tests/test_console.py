"""What a person sees: on a terminal while bars run, and in a pipe."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bc2 import console
from bc2.console import board, note, progress, show_on_stderr, table

CELLS: st.SearchStrategy[Any] = st.one_of(
    st.text(st.sampled_from("aZ /[]\\\n\t-é中😀"), max_size=12),
    st.sampled_from(["[bold]x[/bold]", ":smile:", "https://a.b/c", "e\u0301", "x" * 1200]),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, width=16),
)


def drawn(table: Any, capsys: pytest.CaptureFixture[str]) -> str:
    console._draw(table)
    return capsys.readouterr().out


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_table_in_a_pipe_is_what_rich_draws(
    data: st.DataObject, capsys: pytest.CaptureFixture[str]
) -> None:
    width = data.draw(st.integers(1, 4))
    headers = st.sampled_from(["", "ref", "created (UTC)", "数", "tokens/s", "a[b]"])
    columns = data.draw(st.lists(headers, min_size=width, max_size=width))
    one = st.lists(CELLS, min_size=width, max_size=width)
    rows = data.draw(st.lists(one, max_size=4))
    title = data.draw(st.sampled_from([None, None, "a title"]))
    fast = drawn(console.table(columns, rows, title), capsys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "_plain", lambda table: None)
        assert fast == drawn(console.table(columns, rows, title), capsys)


def test_a_long_listing_is_drawn_without_rich(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [[f"{n:016x}", "checkpoint", n, 1000 * n, "", "最好", "2026-01-01"] for n in range(50)]
    columns = ["ref", "kind", "step", "tokens", "run", "tags", "created (UTC)"]
    monkeypatch.setattr("rich.console.Console.print", lambda *_: pytest.fail("by rich"))
    lines = drawn(console.table(columns, rows), capsys).splitlines()
    assert len(lines) == 51
    assert lines[1] == f"{0:016x}  checkpoint     0       0       最好  2026-01-01"


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


def test_a_bar_runs_below_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal has one drawing at a time."""
    drawn = terminal(monkeypatch)
    with progress("training", 4) as outer:
        outer(1, "loss 3.1")
        with progress("checking", 2) as inner:
            inner(2)
        outer(3)
    shown = drawn.getvalue()
    assert shown.index("training") < shown.index("checking")
    with progress("afterwards", 1) as again:
        again(1)
    last = drawn.getvalue()[len(shown) :]
    assert "afterwards" in last
    assert "training" not in last


def test_no_board_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with board() as show:
        show(table(["member"], [["first"]]))
    show_on_stderr(table(["member", "N"], [["first", 1234]]))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split() == ["member", "N", "first", "1,234"]
