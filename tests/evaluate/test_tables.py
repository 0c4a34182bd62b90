"""Scores on a terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from bc2.console import Output
from bc2.evaluate.statistics import ScoreInterval
from bc2.evaluate.summary import Summary
from bc2.evaluate.tables import (
    legend,
    scores_csv,
    scores_json,
    scores_markdown,
    scores_table,
    text_table,
)

CMMLU = Summary(
    suite="cmmlu", subject=None, metric="acc,none", score=0.2534, stderr=0.0041,
    interval=ScoreInterval(0.2452, 0.2617), level=0.95, chance=0.25, label="near chance",
    mean_of="samples", clusters=67, percent=True, shots=5, samples=11582, cut=1200, at_limit=0,
    not_extracted=None, others={"acc_norm,none": 0.2534},
)  # fmt: skip
LAW = replace(
    CMMLU, subject='法律, "民法"|刑法', stderr=None, samples=185, cut=3, clusters=0, label=""
)
GSM8K = replace(
    CMMLU, suite="gsm8k", metric="exact_match,strict", score=1.0, stderr=0.0, chance=None,
    interval=ScoreInterval(0.7225, 1.0), label="", clusters=0, shots=4, samples=10, cut=0,
    at_limit=2, not_extracted={"strict": 0.125, "flexible": 0.0},
    others={"exact_match,flexible": None},
)  # fmt: skip
TEXT = replace(
    GSM8K, suite="text", score=2.34567, interval=None, percent=False, shots=None, not_extracted=None
)
ALL = [CMMLU, LAW, GSM8K, TEXT]


def drawn(capsys: pytest.CaptureFixture[str], table: Any) -> list[str]:
    Output().emit({}, table=table)
    return capsys.readouterr().out.splitlines()


TABLE = """\
benchmark  shots   score      ±  chance  samples    cut  at limit  not extracted  note
cmmlu          5   25.3%   0.4%   25.0%   11,582  1,200         0              -  near chance
gsm8k          4  100.0%   0.0%       -       10      0         2          12.5%  \
95% interval 72.2% to 100.0%
text           -   2.346  0.000       -       10      0         2              -
"""


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert drawn(capsys, scores_table(ALL)) == TABLE.splitlines()


def test_table_is_the_same_when_rich_draws_it(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120)
    console.print(scores_table(ALL))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == TABLE.splitlines()


def test_chinese_names_align(capsys: pytest.CaptureFixture[str]) -> None:
    lines = drawn(capsys, scores_table(ALL, subjects=True))
    assert len(lines) == 5
    ends = {cell_len(line[: line.index("%") + 1]) for line in lines[1:4]}
    assert ends == {cell_len(lines[0].partition("score")[0] + "score")}


def test_csv_is_read_back_by_a_reader() -> None:
    text = scores_csv(ALL)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.count("\n") == 5
    assert rows[0] == {
        "suite": "cmmlu", "subject": "", "metric": "acc,none", "shots": "5", "score": "0.2534",
        "stderr": "0.0041", "low": "0.2452", "high": "0.2617", "level": "0.95", "chance": "0.25",
        "label": "near chance", "mean_of": "samples", "clusters": "67", "samples": "11582",
        "cut": "1200", "at_limit": "0", "not_extracted": "", "acc_norm,none": "0.2534",
        "exact_match,flexible": "",
    }  # fmt: skip
    assert rows[1]["subject"] == LAW.subject
    assert [row["stderr"] for row in rows] == ["0.0041", "", "0.0", "0.0"]
    assert [row["not_extracted"] for row in rows] == ["", "", "0.125", ""]


def test_markdown() -> None:
    lines = scores_markdown(ALL).splitlines()
    table, rest = lines[:6], lines[6:]
    assert len({cell_len(line) for line in table}) == 1
    assert rest == ["", legend(ALL)]
    assert '法律, "民法"\\|刑法' in table[3]
    marks = [cell.strip() for cell in table[1].strip("|").split("|")]
    assert [mark.endswith(":") for mark in marks] == [False, *[True] * 8, False]
    # A bar in a cell is no border.
    assert table[3].count("|") - table[3].count("\\|") == 11
    assert len(scores_markdown(ALL, subjects=False).splitlines()) == 7


def test_legend_says_what_is_averaged_and_clustered() -> None:
    assert legend(ALL).startswith(
        "Scores are means over samples. ± is the standard error, clustered by subject for cmmlu. "
        "Near chance: the 95% interval holds the score of guessing."
    )
    by_subject = replace(CMMLU, suite="bbh", mean_of="subjects", clusters=27)
    assert legend([by_subject, GSM8K]).startswith(
        "Scores are means over samples, of bbh over subjects. ± is the standard error, clustered "
        "by subject for bbh."
    )


def test_json_holds_all() -> None:
    found = [Summary.from_json(each) for each in json.loads(scores_json(ALL))]
    assert found == ALL


def test_a_language_is_drawn_without_control_characters() -> None:
    each = {
        "documents": 1, "tokens": 2, "nats_per_token": 1.0, "nats_per_token_stderr": None,
        "bits_per_byte": 1.0, "bits_per_byte_stderr": None, "perplexity": 2.7,
    }  # fmt: skip
    drawn = text_table({"languages": {"zh": each, "e\nn\x1b[2J": each}, "total": each})
    cells = list(drawn.columns[0].cells)
    assert [str(cell).strip() for cell in cells] == ["zh", r"'e\nn\x1b[2J'", "all"]
