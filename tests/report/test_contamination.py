"""Matches with benchmarks: in a table, on the page."""

from __future__ import annotations

from typing import Any

import pytest

from bc2.data.prep.funnel import Funnel
from bc2.data.prep.stages.decontamination.matches import BenchmarkMatch
from bc2.report import funnel_page
from bc2.report.contamination import MOST_CHARACTERS, counts, matches_table

NASTY = "<b>x</b>\x1b[31m\u202e {{ 7 }}"


def row(number: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "file": "a.jsonl", "row": number, "source": "web", "lang": "en", "benchmark": "quiz",
        "item": f"q.jsonl:{number}", "how": "text", "words": 2, "text": "before two words after",
        "shared": [7, 16], "benchmark_text": "Two words?", "done": "dropped", **more,
    }  # fmt: skip


def funnel(pairs: int, not_listed: int = 0) -> Funnel:
    facts = {"pairs": pairs, "not_listed": not_listed}
    step = {"name": "decontaminate", "removed": {}, "in": [], "out": [], "facts": facts}
    return Funnel.of({"version": 1, "read": {"documents": 0, "bytes": 0}, "stages": [step]})


def drawn(renderable: Any) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=1000).print(renderable)
    return out.getvalue()


def test_a_table_shows_both_texts_and_how_many_more_there_are() -> None:
    matches = [BenchmarkMatch(**row(number)) for number in (1, 2, 3)]
    words = drawn(matches_table(matches, funnel(9, 4), most=2))
    assert "Matches with benchmarks: 9, 7 not here" in words
    assert words.count("before two words after") == words.count("Two words?") == 2
    assert "quiz q.jsonl:2" in words
    assert "whole text, 2 words" in words
    assert "part, 2 words" in drawn(matches_table([BenchmarkMatch(**row(how="ngram"))], funnel(1)))
    assert drawn(matches_table([], funnel(0))) == "No document shares text with a benchmark.\n"
    assert "9, 9 not here" in drawn(matches_table([], funnel(9, 9)))


def test_the_table_begins_near_what_is_shared_and_acts_on_nothing() -> None:
    far = "x" * 90 + f" near\n{NASTY} " + "shared" + "y" * 500
    start = far.index("shared")
    match = BenchmarkMatch(
        **row(text=far, shared=[start, start + 6], benchmark_text=NASTY, source=NASTY)
    )
    words = drawn(matches_table([match], funnel(1)))
    assert "near" in words
    assert "shared" in words
    assert "x" * 40 not in words
    assert "y" * MOST_CHARACTERS not in words
    assert all(one.isprintable() or one == "\n" for one in words)


def test_a_funnel_of_an_older_version_has_no_counts() -> None:
    empty = {"version": 1, "read": {"documents": 0, "bytes": 0}}
    assert counts(Funnel.of(empty)) == {"pairs": 0, "not_listed": 0}


def test_the_page_marks_what_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(funnel_page, "MOST_MATCHES", 2)
    text = f"{NASTY} two words {NASTY}"
    start = len(NASTY) + 1
    nasty = row(
        text=text, shared=[start, start + 9], benchmark=NASTY, item=NASTY, file=NASTY, lang=NASTY,
        benchmark_text=NASTY, done=NASTY, source=NASTY,
    )  # fmt: skip
    matches = (BenchmarkMatch(**one) for one in [nasty, row(2), row(3)])
    html = funnel_page.render(funnel(8), "made", matches=matches)
    assert html.count("<mark>two words</mark>") == 2
    assert "6 more are in the corpus" in html
    assert "<b>x</b>" not in html
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "q.jsonl:3" not in html
    assert "Matches with benchmarks" not in funnel_page.render(funnel(0), "made")
