"""Every suite on its real release: as many questions as it has, each with a right answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bc2.harness.load import load_suite
from bc2.harness.questions import questions
from bc2.harness.release import open_release
from bc2.harness.suites import SUITES

BENCH = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "bench"

#: Of the releases that this project was made with: questions that are scored.
QUESTIONS = {
    "mmlu": 14042, "cmmlu": 11582, "ceval": 1086, "agieval": 4635, "gaokao": 1458, "jecqa": 1008,
    "medqa": 1268, "medmcqa": 2811, "bbh": 6511, "gsm8k": 1319, "humaneval": 164, "mbpp": 500,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not BENCH.is_dir(), reason="needs ../shared/data/bench")
@pytest.mark.parametrize("name", SUITES)
def test_every_row_makes_a_question(name):
    loaded = load_suite(SUITES[name], open_release(name, BENCH).datasets)
    made = [question for task in loaded.tasks.values() for question in questions(task)]
    assert len(made) == QUESTIONS[name]
    chance = SUITES[name].chance
    choices = 1 if chance is None else round(1 / chance)
    assert {len(question.requests) for question in made} == {choices}
