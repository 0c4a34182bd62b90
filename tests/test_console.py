"""What a person sees, where it is no terminal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bc2 import console

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
