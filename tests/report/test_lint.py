"""What linting found, on a terminal and as a page: all of it is there, and nothing of it acts."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_lints import asked, good, lint_task

from bc2.align.lint.lint import LintTask, lint
from bc2.align.lint.lint_report import LintReport, PackingProof
from bc2.align.lint.shown_tokens import ShownRow, find_rows, first_row, shown_places
from bc2.report import lint_page, lint_view

HOSTILE = "<script>alert('1')</script> <img src='http://x.test/a.png'> [bold]\u202eabc\x1b[31m"

ROWS = [*good(30), asked(HOSTILE, "No."), asked("Empty?", ""), asked(HOSTILE, "")]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LintTask:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)
    return lint_task(tmp_path, {"web": ROWS})


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def drawn(view: Any, width: int = 160) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(view)
    return out.getvalue()


def page_of(task: LintTask) -> str:
    report = lint(task)
    samples = {
        one.code: [[row] for row in shown_places(task, one.examples)] for one in report.findings
    }
    return lint_page.render(report, samples, first_row(task))


def test_a_page_loads_nothing_and_runs_nothing(task: LintTask) -> None:
    page = Page(page_of(task))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "onclick", "onload"} & {name for name, _ in page.attributes}
    assert "<script>alert('1')</script>" in page.text
    assert "\\u202eabc\\x1b[31m" in page.text
    assert "\u202e" not in page.text


def test_a_page_has_the_findings_and_their_tokens(task: LintTask) -> None:
    page = page_of(task)
    assert "2 errors in 33 conversations" in page
    assert "<summary>empty_answer: 2 (error: nothing is trained)</summary>" in page
    assert '<span class="c t" title="id 2, learnt">&lt;/s&gt;</span>' in page
    assert 'class="c" title="id 195">&lt;reserved_106&gt;</span>' in page
    assert "empty_answer: message 1, the assistant&#39;s, is empty" in page
    assert "The first packed row" in page
    assert "Packed equals alone." in page
    assert "never searched for: none lies here" in page


def test_a_page_is_replaced_in_one_go(task: LintTask, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    out.write_text("older")
    lint_page.write(lint(task), out, {}, None)
    assert out.read_text("utf-8").endswith("</html>")


def test_a_long_row_is_cut_and_says_so(task: LintTask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_page, "MOST_ROW_TOKENS", 30)
    row = first_row(task)
    assert row is not None
    page = lint_page.render(lint(task), {}, row)
    assert "further tokens are not shown" in page
    assert f"{len(row.samples) - page.count(' learnt</span></p>')} further samples" in page


def test_tables_have_every_kind_and_the_first_places(task: LintTask) -> None:
    shown = drawn(lint_view.view(lint(task)))
    assert "2 errors in 33 conversations" in shown
    assert "empty_answer: 2 (web: 2)" in shown
    assert "web     web.jsonl   32  message 1, the assistant's, is empty" in shown
    assert "train_serve_difference" in shown
    assert "train 2" in shown
    assert "yes: " in shown


def test_without_faults_it_says_so(task: LintTask) -> None:
    report = lint(task)
    clean = replace(report, findings=tuple(replace(one, count=0) for one in report.findings))
    assert lint_view.said(clean) == "no errors in 33 conversations"
    assert "no errors in 33 conversations" in drawn(lint_view.view(clean))


def test_it_says_that_nothing_is_left_and_that_benchmarks_are_broken(task: LintTask) -> None:
    report = lint(task)
    dropped = tuple(replace(one, policy="drop") for one in report.findings)
    left = replace(report, findings=dropped, packing=None)
    assert lint_view.said(left) == "of 33 conversations none is left to train on"
    overlaps = replace(report.overlaps, unreadable={"gsm8k": "no such folder"})
    told = lint_view.searched(replace(report, overlaps=overlaps))
    assert told == "never searched for: gsm8k and others cannot be read: no such folder"


def test_packing_that_is_wrong_is_an_error(task: LintTask) -> None:
    report = lint(task)
    proof = report.proof
    assert isinstance(proof, PackingProof)
    broken = replace(report, proof=replace(proof, leaked=0.5))
    assert broken.errors == report.errors + 1
    assert lint_view.proven(broken.proof).startswith("NO: ")
    assert "Packed does not equal alone." in lint_page.render(broken, {}, None)


def test_tokens_are_coloured_by_what_is_learnt(task: LintTask) -> None:
    from rich.console import Group

    view = lint_view.samples_view(find_rows(task, "1"))
    assert isinstance(view, Group)
    (tokens,) = [one for one in view.renderables if "What is" in str(one)]
    styles = {tokens.plain[span.start : span.end]: span.style for span in tokens.spans}
    assert styles["<reserved_106>"] == styles["<reserved_107>"] == "cyan reverse"
    assert styles["</s>"] == "green reverse"
    assert "dim" in styles.values()
    assert "green" in styles.values()


def test_strangers_words_act_on_no_terminal(task: LintTask) -> None:
    shown = drawn(lint_view.samples_view(find_rows(task, "31")))
    assert "\x1b[31m" not in shown
    assert "[bold]\\u202eabc\\x1b[31m" in shown


def test_a_sample_is_shown_below_the_tables(task: LintTask) -> None:
    row = first_row(task)
    assert isinstance(row, ShownRow)
    shown = drawn(lint_view.view(lint(task), row))
    assert "Of the conversations one as the model learns it" in shown
    assert "<reserved_106>What is" in shown


def test_nothing_left_is_said(task: LintTask) -> None:
    report: LintReport = replace(lint(task), lengths=None, packing=None, proof=None, sources=())
    shown = drawn(lint_view.view(report))
    assert "not tried: there is no sample" in shown
    assert "Not tried: there is no sample." in lint_page.render(report, {}, None)
