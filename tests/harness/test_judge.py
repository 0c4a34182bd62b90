"""Answers are filtered and measured as `lm_eval.evaluator.evaluate` does it, sample by sample."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from bc2.errors import RunFailed
from bc2.harness.judge import judge
from bc2.harness.load import load_suite
from bc2.harness.suites import Suite

COUNT = 9


def number(*of: Any, below: int) -> int:
    return int(hashlib.sha256(repr(of).encode()).hexdigest(), 16) % below


def cmmlu(at: int) -> dict[str, Any]:
    return {"Question": f"第{at}题", **{k: f"{k}{at}" for k in "ABCD"}, "Answer": "ABCD"[at % 4]}


def gsm8k(at: int) -> dict[str, Any]:
    return {"question": f"How many are {at} and 1?", "answer": f"One more.\n#### {at % 4}"}


def trivia(at: int) -> dict[str, Any]:
    return {"question": f"Who was number {at}", "answer": {"aliases": [f"Ann {at % 3}", "Bo"]}}


def truthful(at: int) -> dict[str, Any]:
    choices = [f"it is {at} {n}" for n in range(2 + at % 4)]
    labels = [1, *(number(at, n, below=2) for n in range(1, len(choices)))]
    return {
        "question": f"Is it {at}?",
        "mc1_targets": {"choices": choices, "labels": [1, *[0] * (len(choices) - 1)]},
        "mc2_targets": {"choices": choices, "labels": labels},
    }


def wikitext(at: int) -> dict[str, Any]:
    return {"page": f" = Page {at} = \n It is the page , of {at} ."}


def winogrande(at: int) -> dict[str, Any]:
    return {
        "sentence": f"The box {at} does not fit the case since _ is large.", "option1": "the box",
        "option2": f"the case {at}", "answer": "12"[at % 2],
    }  # fmt: skip


DATA = {
    ("haonan-li/cmmlu", "agronomy"): (cmmlu, ("dev", "test")),
    ("openai/gsm8k", "main"): (gsm8k, ("train", "test")),
    ("mandarjoshi/trivia_qa", "rc.nocontext"): (trivia, ("train", "validation")),
    ("truthfulqa/truthful_qa", "multiple_choice"): (truthful, ("validation",)),
    ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): (wikitext, ("test",)),
    ("allenai/winogrande", "winogrande_xl"): (winogrande, ("train", "validation")),
}
DATASETS = {
    key: {split: [make(at) for at in range(COUNT)] for split in splits}
    for key, (make, splits) in DATA.items()
}

TASKS = (
    "cmmlu_agronomy", "gsm8k", "gsm8k_cot_self_consistency", "triviaqa", "truthfulqa_mc2",
    "wikitext", "winogrande",
)  # fmt: skip


def load(name: str) -> Any:
    return load_suite(Suite(name, name, None, name, None, None), DATASETS).tasks[name]


def said(at: int, repeat: int) -> str:
    """Some of it can be extracted, some is right, and repeats of one prompt differ."""
    found = at % 4 + number(at, repeat, below=2)
    texts = (f"so #### {found}", f"The answer is {found}.", f" ann {at % 3}\n", "no", " Bo ")
    return texts[number("text", at, repeat, below=5)]


def response(kind: str, doc_id: int, at: int, repeat: int) -> Any:
    if kind == "generate_until":
        return said(doc_id, repeat)
    log_prob = -number(doc_id, at, below=997) / 7
    if kind == "loglikelihood_rolling":
        return log_prob
    return log_prob, number("greedy", doc_id, at, below=2) == 1


def fixed() -> Any:
    from lm_eval.api.model import LM

    class Fixed(LM):
        """Answers that depend on the sample and on how often it was asked alone."""

        def __init__(self) -> None:
            super().__init__()
            self.times: dict[Any, int] = {}

        def answers(self, requests: list[Any]) -> list[Any]:
            return [self.answer(one) for one in requests]

        def answer(self, one: Any) -> Any:
            key = one.metadata[1], one.idx
            self.times[key] = self.times.get(key, -1) + 1
            return response(one.request_type, *key, self.times[key])

        loglikelihood = generate_until = loglikelihood_rolling = answers

    return Fixed()


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("limit", [4, COUNT])
def test_samples_are_judged_as_by_lm_eval(name: str, limit: int) -> None:
    from lm_eval.evaluator import evaluate

    theirs = evaluate(fixed(), {"tasks": {name: load(name)}}, limit=limit, bootstrap_iters=0)
    rows = theirs["samples"][name]
    task = load(name)
    requests: dict[int, list[Any]] = {}
    load_again = load(name)
    load_again.build_all_requests(limit=limit)
    for one in load_again.instances:
        repeats = range(one.repeats)
        given = [response(one.request_type, one.doc_id, one.idx, n) for n in repeats]
        requests.setdefault(one.doc_id, []).append(given)
    # The order of the answers says nothing.
    found = list(judge(task, dict(reversed(requests.items()))))
    assert [one.doc_id for one in found] == list(range(limit))
    filters = {row["filter"] for row in rows}
    assert filters == set(found[0].metrics)
    for row in rows:
        one = found[row["doc_id"]]
        assert one.doc == row["doc"]
        assert one.target == row["target"]
        assert one.filtered[row["filter"]] == row["filtered_resps"]
        assert one.metrics[row["filter"]] == {key: row[key] for key in row["metrics"]}
    values = {repr(each) for one in found for each in one.metrics.values()}
    assert limit < COUNT or len(values) > 1, "too uniform to show anything"
    assert task._instances is None


def test_repeats_and_filters_are_there_to_be_judged() -> None:
    assert load("gsm8k_cot_self_consistency").config.repeats == 64
    assert [one.name for one in load("gsm8k")._filters] == ["strict-match", "flexible-extract"]
    assert len(load("triviaqa").doc_to_target(trivia(0))) == 2


def test_verdicts_are_measured_in_place_of_the_texts() -> None:
    rows = [
        {
            "task_id": f"HumanEval/{at}", "prompt": f"def f{at}(x):\n", "test": "",
            "canonical_solution": "", "entry_point": f"f{at}",
        }
        for at in range(3)
    ]  # fmt: skip
    suite = Suite("humaneval", "HumanEval", None, "bc2_humaneval", None, None, runs_code=True)
    task = load_suite(suite, {("openai/openai_humaneval", None): {"test": rows}})
    answers = {at: [[f"    return {n}" for n in range(4)]] for at in range(3)}
    verdicts = {0: [True] * 4, 1: [False, True, False, False], 2: [False] * 4}
    found = list(judge(task.tasks["bc2_humaneval"], answers, verdicts))
    assert [one.metrics["create_test"] for one in found] == [
        {"pass@1": 1.0}, {"pass@1": 0.25}, {"pass@1": 0.0},
    ]  # fmt: skip
    assert found[1].filtered["create_test"][0][2] == "def f1(x):\n    return 2"


def test_rows_are_not_made_again_for_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tasks work through all rows whenever they are asked for them."""
    task = load("cmmlu_agronomy")
    asked = []
    rows = task.eval_docs
    monkeypatch.setattr(type(task), "eval_docs", property(lambda self: asked.append(1) or rows))
    answers = {at: [[(-1.0, False)]] * 4 for at in range(COUNT)}
    assert len(list(judge(task, answers))) == COUNT
    assert len(asked) == 1


def test_a_sample_that_cannot_be_measured_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    task = load("gsm8k")
    measure = task.process_results

    def fail(doc: Any, given: Any) -> Any:
        if doc == gsm8k(2):
            raise ZeroDivisionError("division by zero")
        return measure(doc, given)

    monkeypatch.setattr(task, "process_results", fail)
    found = []
    with pytest.raises(RunFailed, match="cannot be judged: ZeroDivisionError") as info:
        found.extend(judge(task, {at: [["#### 1"]] for at in range(5)}))
    assert info.value.where == "gsm8k:2"
    assert len(found) == 2


def test_a_filter_that_fails_names_its_task() -> None:
    with pytest.raises(RunFailed, match="cannot be judged") as info:
        list(judge(load("triviaqa"), {0: [[7]]}))
    assert info.value.where == "triviaqa"
