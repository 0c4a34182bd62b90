"""The work: the same for the same seed, within the model's vocabulary and context."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from bc2.bench.generation.work import Work, make_work
from bc2.errors import UsageError

ASKED: dict[str, Any] = {
    "vocab_size": 1000, "context_length": 4096, "requests": 200, "seed": 3, "prompts": None,
    "mmlu": None, "subjects": 2, "questions": 3, "encode": None,
}  # fmt: skip


def made(**asked: Any) -> Work:
    return make_work(**{**ASKED, **asked})


def test_random_work_follows_from_the_seed() -> None:
    work = made()
    assert work == made()
    assert work.answers != made(seed=4).answers
    sizes = [len(prompt) for prompt in work.prompts]
    assert (10 <= min(sizes) < 30, 180 < max(sizes) <= 200) == (True, True)
    assert (16 <= min(work.answers) < 40, 490 < max(work.answers) <= 512) == (True, True)
    assert all(0 <= i < 1000 for prompt in work.prompts for i in prompt)


def test_questions_of_a_subject_begin_alike() -> None:
    work = made()
    beginnings = [question.context[:1500] for question in work.questions]
    assert [len(list(same)) for _, same in groupby(beginnings)] == [3, 3]
    assert len({tuple(question.context) for question in work.questions}) == 6
    assert {len(question.context) for question in work.questions} == {1600}
    assert all([len(c) for c in question.choices] == [1] * 4 for question in work.questions)
    facts = work.facts()
    assert (facts["score_requests"], facts["score_tokens"]) == (24, 24 * 1601)
    assert facts["answer_tokens"] == sum(work.answers)


def test_what_does_not_fit_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"a prompt with its answer has \d+ tokens"):
        made(context_length=300)
    assert {len(q.context) for q in made(context_length=1000).questions} == {999}


def test_ids_of_another_vocabulary_are_folded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "az"}))
    assert made(requests=1, prompts=path).prompts == [[97, 122]]
    assert made(requests=1, prompts=path, vocab_size=100).prompts == [[97, 22]]
    work = made(requests=1, prompts=path, encode=lambda text: [2003, len(text)])
    assert work.prompts == [[3, 2]]


def test_as_many_examples_as_fit_are_kept(tmp_path: Path) -> None:
    for split, rows in (("dev", 5), ("test", 2)):
        (tmp_path / split).mkdir()
        text = "question,a,b,c,d,answer\n" + f"{'why ' * 200}?,1,2,3,4,1\n" * rows
        (tmp_path / split / f"art_{split}.csv").write_text(text)
    asked = {"mmlu": tmp_path, "subjects": 1, "requests": 1}
    whole = made(**asked, context_length=9999)
    assert whole.shots == 5
    assert whole.questions[0].choices == [[65], [66], [67], [68]]
    size = len(whole.questions[0].context)
    tight = made(**asked, context_length=size)
    assert tight.shots == 4
    assert len(tight.questions[0].context) < size
    with pytest.raises(UsageError, match="do not fit into a context of 700"):
        made(**asked, context_length=700)
