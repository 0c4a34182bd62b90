"""Every suite from a release's files to prompts: what a prompt calls right is right."""

from __future__ import annotations

import re

import made_releases
import pytest

from bc2.harness.code_tasks import program_of
from bc2.harness.load import load_suite
from bc2.harness.questions import questions
from bc2.harness.release import open_release
from bc2.harness.suites import SUITES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    made_releases.write_releases(folder)
    return folder


@pytest.fixture
def loaded(folder):
    return lambda name: load_suite(SUITES[name], open_release(name, folder).datasets)


SUM = re.compile(r"(\d+) stones and finds (\d+)|有(\d+)颗石子，又捡到(\d+)颗")
OPTION = re.compile(r"^([A-E])\. (\d+)$", re.MULTILINE)
ANSWER = re.compile(r"(?:Answer:|答案：) ([A-E])$", re.MULTILINE)


def right_letter(block: str) -> str:
    """The letter of the option that is the sum that a block asks for."""
    a, b = (int(one) for one in SUM.search(block).groups() if one)
    (letter,) = [letter for letter, option in OPTION.findall(block) if int(option) == a + b]
    return letter


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite.chance])
def test_the_right_letter_is_of_the_right_option(name, loaded):
    for task in loaded(name).tasks.values():
        for question in questions(task):
            prompt = question.requests[0].arguments[0]
            starts = [found.start() for found in SUM.finditer(prompt)]
            assert len(starts) == 6
            blocks = [prompt[a:b] for a, b in zip(starts, [*starts[1:], len(prompt)], strict=True)]
            assert [ANSWER.findall(block) for block in blocks] == [
                *([right_letter(block)] for block in blocks[:5]),
                [],
            ]
            choice = task.doc_to_choice(question.doc)[task.doc_to_target(question.doc)]
            assert choice == right_letter(blocks[5])
            assert [one.arguments[1] for one in question.requests] == [
                f" {letter}" for letter in "ABCDE"[: len(question.requests)]
            ]


@pytest.mark.parametrize("name", ["gsm8k", "bbh"])
def test_an_answer_is_extracted_and_right(name, loaded):
    for task in loaded(name).tasks.values():
        for question in questions(task):
            a, b = (int(one) for one in SUM.findall(question.requests[0].arguments[0])[-1][:2])
            right = f"#### {a + b}"
            if name == "bbh":
                right = f"so the answer is {question.doc['target']}."
            for answer, score in ((right, 1.0), ("I do not know", 0.0)):
                (request,) = question.requests
                request.resps = [answer]
                task._instances = [request]
                task.apply_filters()
                key = SUITES[name].metric.split(",")[1]
                results = task.process_results(question.doc, [request.filtered_resps[key]])
                assert results["exact_match"] == score


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_released_solutions_pass_and_others_fail(name, loaded):
    (task,) = loaded(name).tasks.values()
    made = list(questions(task))
    assert len(made) == 10
    for question in made:
        doc = question.doc
        right = doc["canonical_solution" if name == "humaneval" else "code"]
        exec("\n".join(program_of(task, doc, right)[:2]), {})
        wrong = right.replace("return x", "return 1 - x")
        with pytest.raises(AssertionError):
            exec("\n".join(program_of(task, doc, wrong)[:2]), {})
