"""HumanEval and MBPP: lm-eval's prompts, stop texts and programs, judged elsewhere."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import datasets as hub
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager

from bc2.harness.code_tasks import program_of
from bc2.harness.load import load_suite
from bc2.harness.questions import questions
from bc2.harness.suites import SUITES

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent

HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'import math\n\ndef f{number}(x):\n    """Return {{x}} + {number}."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"\n\ndef check(candidate):\n    assert candidate(1) == {number + 1}\n\n",
        "entry_point": f"f{number}",
    }
    for number in range(3)
]


def mbpp_row(number: int) -> dict[str, object]:
    return {
        "task_id": number,
        "text": f"Write a function that adds {number}.",
        "code": f"def f{number}(x):\r\n  return x + {number} ",
        "test_list": [f"assert f{number}({i}) == {i + number}" for i in range(3)],
        "test_setup_code": "root = 1",
        "challenge_test_list": [],
    }


@pytest.fixture
def lm_evals(monkeypatch):
    """A task of lm-eval by itself; its metric, which it fetches from the hub, is a stand-in."""

    class Metric:
        def compute(self, references, predictions, k):
            return {"pass@1": float(len(predictions[0]))}, None

    monkeypatch.setattr("evaluate.load", lambda *_: Metric())

    def load(name, rows):
        given = hub.DatasetDict({k: hub.Dataset.from_list(v) for k, v in rows.items()})
        monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", lambda **_: given)
        manager = TaskManager(include_path=str(LM_EVAL_TASKS / name), include_defaults=False)
        task = manager.load(name)["tasks"][name]
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests()
        return task

    return load


@pytest.fixture
def shots(lm_evals):
    """The rows of the release that lm-eval's mbpp has written down as its shots."""
    lm_evals("mbpp", {"test": [mbpp_row(11)]})
    written = sys.modules["lm_eval.tasks.mbpp.utils"].list_fewshot_samples()
    return [{**mbpp_row(0), **row} for row in written]


def prompts(task) -> list[object]:
    return [one.arguments for question in questions(task) for one in question.requests]


def test_humaneval_asks_and_judges_as_lm_eval(lm_evals):
    reference = lm_evals("humaneval", {"test": HUMANEVAL})
    loaded = load_suite(
        SUITES["humaneval"], {("openai/openai_humaneval", None): {"test": HUMANEVAL}}
    )
    task = loaded.tasks["bc2_humaneval"]
    assert prompts(task) == [one.arguments for one in reference.instances]
    for doc in task.eval_docs:
        answer = "    return x\n"
        ((candidate,),) = reference._filters[0].filters[0]().apply([[answer]], [doc])
        tests = reference.doc_to_target(doc)
        assert program_of(task, doc, answer) == (candidate, tests, (doc["entry_point"],))
        assert [list(one) for one in task._filters[0].filters[0]().apply([[answer]], [doc])] == [
            [candidate]
        ]
    assert task.process_results(doc, [[True, False, True, True]]) == {"pass@1": 0.75}
    assert task.process_results(doc, [[0.0]]) == {"pass@1": 0.0}
    assert "pass@1" in reference.process_results(doc, [[candidate]])
    assert task.aggregation()["pass@1"]([1.0, 0.0]) == 0.5


def test_mbpp_asks_and_judges_as_lm_eval(lm_evals, shots):
    rows = [mbpp_row(number) for number in (11, 12, 13)]
    reference = lm_evals("mbpp", {"test": rows})
    others = [mbpp_row(number) for number in (1, 5)]
    shots = [{key: value for key, value in row.items() if key != "is_fewshot"} for row in shots]
    release = {"prompt": [others[0], *shots, others[1]], "test": rows}
    given = {("google-research-datasets/mbpp", "full"): release}
    task = load_suite(SUITES["mbpp"], given).tasks["bc2_mbpp"]
    assert prompts(task) == [one.arguments for one in reference.instances]
    assert "\r\n" in prompts(task)[0][0]
    doc = task.eval_docs[0]
    answer = "def f11(x): return x\n"
    tests = f"{doc['test_setup_code']}\n{reference.doc_to_target(doc)}"
    names = (f"f{doc['task_id']}",)
    assert program_of(task, doc, answer) == (answer, tests, names)
    assert task.process_results(doc, [[True, False]]) == {"pass_at_1": 0.5}
    assert list(reference.process_results(doc, [answer])) == ["pass_at_1"]


@pytest.mark.skipif(not (DATA / "bench" / "mbpp").is_dir(), reason="needs ../shared/data/bench")
def test_the_releases_first_rows_are_lm_evals_shots(shots):
    lines = (DATA / "bench" / "mbpp" / "data" / "mbpp.jsonl").read_text().splitlines()
    released = [json.loads(line) for line in lines[1:4]]
    for row, written in zip(released, shots, strict=True):
        assert [row[key] for key in ("task_id", "text", "code", "test_list")] == [
            written[key] for key in ("task_id", "text", "code", "test_list")
        ]
