"""Prompts of a suite are found by what they depend on, without lm-eval once they are stored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bc2.evaluate.suite_prompts import SuitePrompts, SuiteRows
from bc2.harness.load import LoadedSuite
from bc2.harness.suites import Suite, suite_of
from bc2.tokenizer.tokenizer import Tokenizer


def no_tasks(*_: Any) -> LoadedSuite:
    raise AssertionError("lm-eval's tasks were loaded")


def test_stored_prompts_need_no_task(make_prompts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_prompts("jecqa")
    expected = [first.file(task).read(0, task.samples) for task in first.tasks]
    monkeypatch.setattr(SuiteRows, "load", no_tasks)
    again = make_prompts("jecqa")
    assert again.tasks == first.tasks
    assert [again.file(task).read(0, task.samples) for task in again.tasks] == expected
    few = make_prompts("jecqa", limit=1)
    assert [task.samples for task in few.tasks] == [1, 1]
    assert [few.file(task).read(0, 1) for task in few.tasks] == [some[:1] for some in expected]


def test_where_they_are_depends_on_what_they_depend_on(
    make_prompts: Any, other_tokenizer: Tokenizer
) -> None:
    def folder(tokenizer: Tokenizer | None = None, **request: Any) -> str:
        made: SuitePrompts = make_prompts("gsm8k", **request)
        if tokenizer is not None:
            made = SuitePrompts(made.rows, made.settings, tokenizer, made.kept_in)
        return made.store.folder.name

    same = {
        folder(), folder(limit=3), folder(samples=4), folder(temperature=0.5),
        folder(precision="bf16"), folder(shots=4),
    }  # fmt: skip
    others = [folder(shots=3), folder(seed=1), folder(other_tokenizer)]
    assert len(same) == 1
    assert len({*same, *others}) == 4


def test_prompts_of_an_edited_task_are_built_again(
    make_prompts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make_prompts("gsm8k").store.folder
    monkeypatch.setattr("bc2.evaluate.evaluation.harness_version", lambda suite: "edited")
    assert make_prompts("gsm8k").store.folder != before


@pytest.fixture
def other_tokenizer(made_tokenizer: Tokenizer) -> Any:
    return SimpleNamespace(
        digest="0" * 64, eos_id=2, bos_id=1, begin_ids=(), encode=made_tokenizer.encode
    )


def test_damaged_facts_are_recorded_again(make_prompts: Any) -> None:
    first = make_prompts("gsm8k")
    facts = first.facts
    path = first.store.folder / "suite.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert make_prompts("gsm8k").facts == facts
    assert path.read_bytes() == whole


def test_facts_of_a_task(make_prompts: Any) -> None:
    made = make_prompts("gsm8k", limit=4)
    (facts,) = made.facts["tasks"].values()
    assert (facts["kind"], facts["samples"], facts["repeats"]) == ("generate", 10, 1)
    assert facts["version"] == made.loaded.tasks["gsm8k"].VERSION
    assert len(facts["hash"]) == 64
    (task,) = made.tasks
    assert task.samples == 4
    assert task.generation == facts["generation"]


def test_a_task_that_votes_wants_several_texts(make_prompts: Any) -> None:
    (task,) = make_prompts("gsm8k_cot_self_consistency").tasks
    assert task.repeats == 64


def test_rows_of_the_hub_are_known_with_the_shots_that_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The task has none by itself, so its own number says nothing of the rows for shots."""
    asked = []

    def load(self: SuiteRows, shots: int | None, seed: int) -> Any:
        asked.append(shots)
        return SimpleNamespace(tasks={})

    monkeypatch.setattr(SuiteRows, "load", load)
    rows = SuiteRows.open(Suite("arc", "ARC", None, "arc_easy", None, None), None)
    rows.digest(5)
    assert asked == [5]


def test_rows_of_a_release_have_its_digest(releases: Any) -> None:
    rows = SuiteRows.open(suite_of("gsm8k"), releases)
    assert rows.release is not None
    assert rows.digest(0) == rows.digest(4) == rows.release.digest
