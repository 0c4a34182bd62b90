"""A whole lint: faults of both splits, figures that can be counted by hand, policies, speed."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_lints import asked, good, lint_task

from bc2.align.lint import shown_tokens
from bc2.align.lint.lint import LintTask, lint
from bc2.align.lint.lint_report import Finding, LintReport
from bc2.align.lint.shown_tokens import find_rows, first_row, shown_places
from bc2.align.samples.rendered_chats import rendered_chats
from bc2.align.samples.row_checks import FAULTS
from bc2.align.sft.sft_inputs import render_settings
from bc2.data.chats.chats import Chats
from bc2.errors import DataError

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "align"

#: 60 good rows, then rows 61 to 69.
FAULTY = [
    *good(60),
    asked("What is empty?", " \n"),
    asked("What is cut?", "```python\nprint("),
    asked("What is not learnt?", "It.", train=False),
    {"messages": [{"role": "user", "content": "And?"}, {"role": "user", "content": "And?"}]},
    {"messages": [{"role": "user", "content": "Who has the last word?"}]},
    asked("What is long?", "word " * 400),
    asked("What is 1 and one?", "It is 2, of course."),
    asked("What is </s>?", "An end."),
    asked("谁在说中文？", "我在说中文，而且说得很好，每天都说。"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)


@pytest.fixture
def faulty(tmp_path: Path) -> LintTask:
    return lint_task(tmp_path, {"web": FAULTY, "copied": [FAULTY[0], *good(100)[70:]]})


def finding(report: LintReport, code: str) -> Finding:
    (found,) = [one for one in report.findings if one.code == code]
    return found


def _folder(tmp_path: Path) -> Path:
    made = tmp_path / "more"
    made.mkdir()
    return made


def rows(found: Finding) -> list[int]:
    return [place.row for place in found.examples]


def test_every_fault_is_found_where_it_is(faulty: LintTask) -> None:
    report = lint(faulty)
    assert rows(finding(report, "empty_answer")) == [61]
    assert rows(finding(report, "cut_answer")) == [62]
    assert sorted(rows(finding(report, "no_trained_tokens"))) == [63, 64, 65]
    assert rows(finding(report, "roles_out_of_order")) == [64]
    assert rows(finding(report, "too_long")) == [66]
    assert rows(finding(report, "spelled_control")) == [68]
    assert sorted(rows(finding(report, "unanswered"))) == [64, 65]
    copy = finding(report, "copy")
    assert (rows(copy), copy.by_source) == ([67], {"web": 1})
    assert copy.examples[0].why == "as row 2"
    assert report.copies_of_other_sources == 1
    quiet = set(FAULTS) - {"empty_answer", "cut_answer", "no_trained_tokens", "roles_out_of_order"}
    assert {finding(report, code).count for code in quiet} == {0}
    assert report.errors == 1 + 1 + 3 + 1 + 1


def test_what_the_recipe_leaves_out_is_no_error(tmp_path: Path) -> None:
    report = lint(lint_task(tmp_path, {"web": FAULTY}, faulty="drop", too_long="drop"))
    assert report.errors == 0
    assert finding(report, "empty_answer").policy == "drop"
    rounds = lint_task(_folder(tmp_path), {"web": FAULTY}, faulty="drop", too_long="rounds")
    assert finding(lint(rounds), "too_long").policy == "drop"


def test_figures_are_those_of_the_samples(faulty: LintTask) -> None:
    report, chats = lint(faulty), Chats.open(faulty.source.folder)
    samples = [
        rendered_chats(faulty.source, split, render_settings(faulty.config))
        for split in ("train", "heldout")
    ]
    lengths = np.concatenate([one.lengths for one in samples])
    assert report.lengths is not None
    assert report.lengths.tokens == lengths.sum()
    assert report.lengths.trained == sum(one.trained.sum() for one in samples)
    assert report.lengths.quantiles["median"] == np.quantile(lengths, 0.5, method="lower")
    assert report.lengths.quantiles["max"] == lengths.max()
    assert sum(count for _, _, count in report.lengths.histogram) == len(lengths)
    for start, stop, count in report.lengths.histogram:
        assert count == ((lengths >= start) & (lengths < stop)).sum()
    assert report.splits == {split: chats.count(split) for split in ("train", "heldout")}
    assert report.packing is not None
    used = samples[0].lengths.sum() / (report.packing.rows * 128)
    assert report.packing.filled == pytest.approx(used)
    web, copied = report.sources
    assert (web.name, web.rows, web.copies) == ("web", 69, 1)
    assert web.samples == 69 - 6  # 61 to 66 cannot be trained on
    assert web.languages["zh"] == 1
    assert (copied.name, copied.rows, copied.samples) == ("copied", 31, 31)
    assert web.tokens + copied.tokens == report.lengths.tokens
    assert report.proof is not None
    assert report.proof.holds


def test_benchmarks_that_were_never_searched_for_are_named(faulty: LintTask) -> None:
    overlaps = lint(faulty).overlaps
    assert overlaps.benchmarks == ()
    assert "gsm8k" in overlaps.missing


def test_a_folder_of_benchmarks_that_is_not_there_is_an_error(
    faulty: LintTask, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        lint(faulty, benchmarks=tmp_path / "nowhere")


def test_a_recipe_that_leaves_everything_out_is_an_error(tmp_path: Path) -> None:
    untrained = [asked(f"What is {n}?", "It.", train=False) for n in range(9)]
    report = lint(lint_task(tmp_path, {"web": untrained}, faulty="drop"))
    assert (report.nothing_left, report.errors) == (True, 1)


def test_a_report_is_json(faulty: LintTask) -> None:
    found = json.loads(json.dumps(lint(faulty, show=1).to_json()))
    assert found["errors"] == 7
    assert found["proof"]["holds"] is True
    assert all(len(one["examples"]) <= 1 for one in found["findings"])


def test_without_a_sample_there_are_no_figures_of_samples(tmp_path: Path) -> None:
    empty = [asked(f"What is {n}?", "") for n in range(20)]
    report = lint(lint_task(tmp_path, {"web": empty}))
    assert finding(report, "empty_answer").count == 20
    assert (report.lengths, report.packing, report.proof) == (None, None, None)
    assert first_row(lint_task(_folder(tmp_path), {"web": empty})) is None


# -- tokens


def test_of_a_very_long_example_the_beginning_is_shown_and_all_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = lint_task(tmp_path, {"web": [asked("Long?", "word " * 400), *good(9)]})
    (whole,) = find_rows(task, "1")
    monkeypatch.setattr(shown_tokens, "_MOST_IDS", 50)
    (part,) = shown_places(task, [whole.place])
    assert part.tokens == whole.tokens[: len(part.tokens)]
    assert sum(len(token.ids) for token in part.tokens) == 50
    assert (part.length, part.trained) == (whole.length, whole.trained)


def test_tokens_say_what_is_learnt(tmp_path: Path) -> None:
    two = [*asked("Q", "A")["messages"], *asked("谁？", "你", weight=2.0)["messages"]]
    task = lint_task(tmp_path, {"web": [{"messages": two}, *good(9)]})
    (one,) = find_rows(task, "1")
    said = [(token.text, token.control, token.trained, token.learns) for token in one.tokens]
    assert said == [
        ("<reserved_106>", True, False, ""),
        ("Q", False, False, ""),
        ("<reserved_107>", True, False, ""),
        ("A", False, True, ""),
        ("<reserved_106>", True, True, "</s>"),
        ("谁", False, False, ""),
        ("？", False, False, ""),
        ("<reserved_107>", True, False, ""),
        ("你", False, True, ""),
        ("</s>", True, True, ""),
    ]
    assert [token.weight for token in one.tokens][-2:] == [2.0, 2.0]
    # Of so small a vocabulary these characters are three tokens each.
    assert [len(token.ids) for token in one.tokens[5:7]] == [3, 3]
    assert one.trained == 1 + 1 + 3 + 1


def test_a_row_is_found_in_its_source(faulty: LintTask) -> None:
    assert len(find_rows(faulty, "1")) == 2
    (one,) = find_rows(faulty, "copied:1")
    assert (one.place.source, one.faults) == ("copied", ())
    (one,) = find_rows(faulty, "web:61")
    assert one.faults == ("empty_answer: message 1, the assistant's, is empty",)
    with pytest.raises(DataError, match="row web:700"):
        find_rows(faulty, "web:700")


def test_a_row_without_a_place_shows_why(faulty: LintTask) -> None:
    report = lint(faulty)
    (one,) = shown_places(faulty, finding(report, "cut_answer").examples)
    assert one.place.row == 62
    assert one.tokens


def test_the_first_row_is_what_the_model_is_given(faulty: LintTask) -> None:
    row = first_row(faulty)
    assert row is not None
    # Each shows one token that the model says, and is not given.
    given = sum(one.length - 1 for one in row.samples)
    assert given + row.padding == 128
    assert all(one.tokens[-1].text == "</s>" and one.tokens[-1].trained for one in row.samples)


# -- real data


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/align, or BC2_TEST_DATA")
def test_real_conversations_have_the_faults_that_they_have(tmp_path: Path) -> None:
    names = {"en": "alpaca_en_52k.jsonl.gz", "zh": "alpaca_zh_carbonz0.jsonl.gz"}
    sources = {}
    for name, file in names.items():
        with gzip.open(DATA / file, "rt", encoding="utf-8") as lines:
            sources[name] = [json.loads(line) for line in lines]
    task = lint_task(tmp_path, sources, too_long="drop")
    report = lint(task)
    empty = finding(report, "empty_answer")
    assert empty.by_source == {"en": 28, "zh": 11}
    assert report.errors == 39
    assert finding(report, "copy").count == 28
    assert report.copies_of_other_sources == 1
