"""From the journal to judged samples."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bc2.errors import RunFailed
from bc2.evaluate.answer_journal import Answered, AnswerJournal, units_of
from bc2.evaluate.judging import judged_samples
from bc2.evaluate.lm_eval_files import sample_rows
from bc2.evaluate.prompts import TaskPrompts
from bc2.evaluate.samples import Answer
from bc2.harness.load import load_suite
from bc2.harness.suites import Suite


def fill(journal: AnswerJournal, task: Any, answer: Any) -> None:
    for unit in units_of(task):
        journal.write(unit, [Answered(doc, answer(doc)) for doc in range(unit.first, unit.last)])


def test_samples_of_a_task_of_choices(make_prompts: Any, tmp_path: Path) -> None:
    prompts = make_prompts("medqa", limit=4)
    (task,) = prompts.tasks
    journal = AnswerJournal(tmp_path, "claims")

    own = prompts.loaded.tasks["bc2_medqa"]

    def chosen(doc_id: int) -> int:
        """Every second one is right."""
        return int((own.doc_to_target(own.eval_docs[doc_id]) + doc_id % 2) % 5)

    def answer(doc_id: int) -> tuple[Answer, ...]:
        return tuple(
            Answer(log_prob=-1.0 - abs(at - chosen(doc_id)), greedy=at == 0, cut=doc_id)
            for at in range(5)
        )

    fill(journal, task, answer)
    found = list(judged_samples(prompts, task, journal, None))
    assert [one.doc_id for one in found] == [0, 1, 2, 3]
    for one in found:
        assert one.doc == own.eval_docs[one.doc_id]
        assert one.target == own.doc_to_target(one.doc)
        assert one.answers == answer(one.doc_id)
        assert one.metrics["none"]["acc"] == float(one.doc_id % 2 == 0)
        assert one.filtered["none"][1] == (one.answers[1].log_prob, False)
        prompt = own.fewshot_context(one.doc, num_fewshot=5)
        assert one.prompt_digest == hashlib.sha256(prompt.encode()).hexdigest()
        assert (one.suite, one.task) == ("medqa", "bc2_medqa")


def test_texts_and_their_repeats(make_prompts: Any, tmp_path: Path) -> None:
    prompts = make_prompts("gsm8k_cot_self_consistency", limit=2)
    (task,) = prompts.tasks
    journal = AnswerJournal(tmp_path, "claims")
    right = [
        prompts.loaded.tasks[task.task].eval_docs[doc]["answer"].split()[-1] for doc in range(2)
    ]

    def answer(doc_id: int) -> tuple[Answer, ...]:
        texts = [f"The answer is {n}" for n in (999, *[right[doc_id]] * 2, *range(1000, 1005))]
        return tuple(Answer(text=text) for text in texts)

    fill(journal, task, answer)
    for one in judged_samples(prompts, task, journal, None):
        assert one.filtered["score-first"] == ["999"]
        assert one.metrics["maj@64"] == {"exact_match": 1.0}
        assert one.metrics["score-first"] == {"exact_match": 0.0}


def test_a_missing_answer_is_named(make_prompts: Any, tmp_path: Path) -> None:
    prompts = make_prompts("medqa")
    (task,) = prompts.tasks
    journal = AnswerJournal(tmp_path, "claims")
    with pytest.raises(RunFailed, match="5 samples of bc2_medqa were not answered") as info:
        list(judged_samples(prompts, task, journal, None))
    assert info.value.where == "bc2_medqa:0"
    (unit,) = units_of(task)
    scored = (Answer(log_prob=-1.0, greedy=False),) * 5
    journal.write(unit, [Answered(doc, scored) for doc in range(5) if doc not in (2, 4)])
    with pytest.raises(RunFailed, match=r"2 samples.*run the same again") as info:
        list(judged_samples(prompts, task, journal, None))
    assert info.value.where == "bc2_medqa:2"


def test_programs_are_judged_by_their_verdicts(make_prompts: Any, tmp_path: Path) -> None:
    prompts = make_prompts("humaneval", limit=3)
    (task,) = prompts.tasks
    journal = AnswerJournal(tmp_path, "claims")
    fill(journal, task, lambda doc: tuple(Answer(text=f"    return {n}") for n in range(12)))
    seen = []

    def verdicts(own: Any, answered: Any) -> dict[int, list[bool]]:
        seen.append((own.task_name, sorted(answered)))
        return {0: [True] * 12, 1: [False] * 12, 2: [True] * 6 + [False] * 6}

    found = [one.metrics["create_test"] for one in judged_samples(prompts, task, journal, verdicts)]
    assert seen == [("bc2_humaneval", [0, 1, 2])]
    assert [one["pass@1"] for one in found] == [1.0, 0.0, 0.5]
    assert [one["pass@10"] for one in found] == [1.0, 0.0, 1.0]
    assert "pass@100" not in found[0]


def test_whole_texts(tmp_path: Path) -> None:
    page = {"page": " = A page = \n It is short ."}
    suite = Suite("wikitext", "wikitext", None, "wikitext", None, None)
    rows = {("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"): {"test": [page]}}
    task = TaskPrompts("wikitext", "rolling", 1, {})
    journal = AnswerJournal(tmp_path, "claims")
    fill(journal, task, lambda doc: (Answer(log_prob=-80.0),))
    prompts: Any = SimpleNamespace(
        loaded=load_suite(suite, rows), settings=SimpleNamespace(suite="wikitext"),
        file=lambda task: SimpleNamespace(heads=lambda: iter([(0, "d" * 64, 0)])),
    )  # fmt: skip
    (one,) = judged_samples(prompts, task, journal, None)
    assert one.filtered == {"none": [-80.0]}
    total, size = one.metrics["none"]["bits_per_byte"]
    assert (total, size) == (-80.0, len(page["page"].encode()))
    (row,) = sample_rows(one, None)
    assert row["resps"] == [["-80.0"]]
