"""Suites by name: the report's, and any task of lm-eval."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bc2.errors import UsageError
from bc2.harness.suites import SUITES, suite_of

#: Shots as the report gives them.
SHOTS = {
    "mmlu": 5, "cmmlu": 5, "ceval": 5, "agieval": 5, "gaokao": 5, "jecqa": 5, "medqa": 5,
    "medmcqa": 5, "bbh": 3, "gsm8k": 4, "humaneval": 0, "mbpp": 3,
}  # fmt: skip


def test_the_reports_suites_and_shots():
    assert {name: suite.shots for name, suite in SUITES.items()} == SHOTS
    assert all(suite.name == name and suite.source == name for name, suite in SUITES.items())
    assert {name for name, suite in SUITES.items() if suite.runs_code} == {"humaneval", "mbpp"}


def test_the_table_of_the_docs_is_of_these_suites():
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    lines = page.partition("## Suites")[2].splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| `")][1:]
    names = [row[0].split("`")[1] for row in rows]
    assert names == list(SUITES)
    for name, row in zip(names, rows, strict=True):
        suite = SUITES[name]
        assert row[1].startswith(
            "ours" if suite.task.startswith("bc2_") else f"lm-eval `{suite.task}`"
        )
        assert row[2].split(",")[0] == str(suite.shots)
        assert f"`{str(suite.metric).split(',')[0]}`" in row[4]
        assert row[5].startswith(suite.split)
        assert row[6] == ("–" if suite.chance is None else f"{suite.chance:.0%}")


def test_other_spellings():
    assert suite_of("jec-qa") is SUITES["jecqa"]
    assert suite_of("c-eval") is SUITES["ceval"]


def test_any_task_group_or_tag_of_lm_eval():
    task = suite_of("hellaswag")
    assert (task.name, task.task, task.source, task.shots) == ("hellaswag", "hellaswag", None, None)
    assert suite_of("cmmlu_anatomy").source == "cmmlu"
    assert suite_of("mmlu_stem").source == "mmlu"
    assert suite_of("bbh_zeroshot").source == "bbh"
    assert suite_of("mmlu_pro").source is None
    assert suite_of("bc2_agieval_sat_math").source == "agieval"
    assert suite_of("bc2_mbpp") is SUITES["mbpp"]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("cmlu", "cmmlu"),
        ("gsm8", "gsm8k"),
        ("hellaswg", "hellaswag"),
        ("Humaneval", "humaneval"),
        ("MMLU", "mmlu"),
        ("GSM8K", "gsm8k"),
        ("C-Eval", "c-eval"),
        ("JEC-QA", "jec-qa"),
    ],
)
def test_an_unknown_name_has_a_nearest(wrong, right):
    with pytest.raises(UsageError, match=f"no benchmark '{wrong}'.*did you mean '{right}'"):
        suite_of(wrong)


def test_a_name_like_nothing():
    with pytest.raises(UsageError, match=r"no benchmark 'qqqqqqqq'.*bc2 eval --list"):
        suite_of("qqqqqqqq")


def test_the_suites_need_neither_lm_eval_nor_datasets():
    code = (
        "import sys; from bc2.harness.suites import suite_of; suite_of('jec-qa'); "
        "assert not {'lm_eval', 'datasets', 'torch', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
