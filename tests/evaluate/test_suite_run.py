"""How a suite's prompts are built beside the model, answered, and gone on with."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bc2.errors import DataError
from bc2.evaluate.answer_journal import Answered, units_of
from bc2.evaluate.answering import Answerer
from bc2.evaluate.eval_settings import EvalSettings
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.prompts import TaskPrompts
from bc2.evaluate.suite_run import SuiteRun, _TimeLeft, read_ahead

TASKS = [TaskPrompts(f"t{number}", "score", 1, {}) for number in range(9)]


class Builder:
    """In place of `SuitePrompts`: notes what is built, and on which thread."""

    def __init__(self, fails: str | None = None, delay: float = 0.0):
        self.fails, self.delay = fails, delay
        self.built: list[str] = []
        self.threads: set[int] = set()

    def file(self, task: TaskPrompts) -> Any:
        time.sleep(self.delay)
        self.threads.add(threading.get_ident())
        self.built.append(task.task)
        if task.task == self.fails:
            raise DataError("a bad row", where=task.task)
        return task.task


def ahead(builder: Any, tasks: list[TaskPrompts]) -> Any:
    return read_ahead(builder, tasks)


def builders() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("prompts")]


def test_prompts_are_built_ahead_on_one_other_thread() -> None:
    builder = Builder()
    ready = ahead(builder, TASKS)
    assert next(ready) == (TASKS[0], "t0")
    while len(builder.built) < 4:
        time.sleep(0.001)
    time.sleep(0.02)
    assert builder.built == ["t0", "t1", "t2", "t3"], "not all at once"
    assert list(ready) == [(task, task.task) for task in TASKS[1:]]
    assert builder.built == [task.task for task in TASKS]
    assert len(builder.threads - {threading.get_ident()}) == len(builder.threads) == 1
    assert builders() == []


def test_an_error_while_building_comes_once_and_in_its_place() -> None:
    builder = Builder(fails="t2")
    ready = ahead(builder, TASKS)
    assert [next(ready)[1], next(ready)[1]] == ["t0", "t1"]
    with pytest.raises(DataError, match="a bad row") as info:
        next(ready)
    assert info.value.where == "t2"
    with pytest.raises(StopIteration):
        next(ready)
    assert builders() == []
    assert "t8" not in builder.built


def test_what_is_closed_builds_no_more() -> None:
    builder = Builder(delay=0.05)
    ready = ahead(builder, TASKS)
    next(ready)
    ready.close()
    assert builders() == []
    assert len(builder.built) <= 2


def test_no_tasks() -> None:
    assert list(ahead(Builder(), [])) == []


def answering(run: SuiteRun, work: Path) -> dict[str, list[int]]:
    journal = run.answer_all(work)
    return {
        task.task: sorted(doc for unit in units_of(task) for doc in journal.read(unit))
        for task in run.prompts.tasks
    }


def test_every_sample_is_answered_and_then_nothing(
    make_prompts: Any, holder: ModelHolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SuiteRun(make_prompts("jecqa"), holder)
    found = answering(run, tmp_path / "work")
    assert found == {task.task: list(range(task.samples)) for task in run.prompts.tasks}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work/answers").iterdir()}
    monkeypatch.setattr(SuiteRun, "answer", None)
    monkeypatch.setattr(ModelHolder, "engine", None)
    assert answering(SuiteRun(run.prompts, holder), tmp_path / "work") == found
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_run_goes_on(
    make_prompts: Any, holder: ModelHolder, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = answering_texts(SuiteRun(make_prompts("gsm8k", limit=6), holder), tmp_path / "whole")
    run = SuiteRun(make_prompts("gsm8k", limit=6), holder)
    generate = Answerer.generate

    def interrupted(self: Answerer, tasks: Any, generations: Any) -> None:
        left = iter(range(3))

        def advance(samples: int, now: bool) -> None:
            if now and next(left, None) is None:
                raise KeyboardInterrupt

        self.advance = advance
        generate(self, tasks, generations)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.answer_all(tmp_path / "work")
    assert builders() == []
    assert "going on" not in capsys.readouterr().err
    assert answering_texts(run, tmp_path / "work") == whole
    assert len(whole) == 6


def answering_texts(run: SuiteRun, work: Path) -> dict[int, Answered]:
    journal = run.answer_all(work)
    (task,) = run.prompts.tasks
    return {doc: one for unit in units_of(task) for doc, one in journal.read(unit).items()}


def test_going_on_is_said_with_its_part(
    make_prompts: Any, holder: ModelHolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = SuiteRun(make_prompts("jecqa"), holder)
    journal = run.answer_all(tmp_path)
    first = next(units_of(run.prompts.tasks[0]))
    (journal.folder / f"{first.name}.jsonl").unlink()
    run.answer_all(tmp_path)
    assert "going on: 4 of 8 samples are answered already" in capsys.readouterr().err
    assert journal.is_done(first)


def test_ranks_are_started_only_for_what_is_left(
    make_prompts: Any, holder: ModelHolder, tmp_path: Path
) -> None:
    started: list[tuple[EvalSettings, Path, str]] = []
    prompts = make_prompts("jecqa")
    run = SuiteRun(prompts, holder, lambda *told: started.append(told))
    run.answer_all(tmp_path)
    run.answer_all(tmp_path)
    assert [told[:2] for told in started] == [(prompts.settings, tmp_path)] * 2
    claims = [told[2] for told in started]
    assert claims[0] != claims[1], "a dead rank's units would never be answered"
    assert all((tmp_path / name).is_dir() for name in claims)
    SuiteRun(prompts, holder).answer_all(tmp_path)
    run.answer_all(tmp_path)
    assert len(started) == 2


def test_an_answer_that_is_shortened_is_said(
    make_prompts: Any, holder: ModelHolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BBH allows 1,024 tokens, and the window has 320."""
    run = SuiteRun(make_prompts("bbh", limit=1), holder, lambda *told: None)
    run.answer_all(tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert "and 26 more tasks would generate 1,024 tokens; the window of 320 leaves 160" in said
    generations = run.generations()
    assert {one.sampling.max_new_tokens for one in generations.values()} == {160}


def test_a_task_that_votes_is_answered_as_often(make_prompts: Any, holder: ModelHolder) -> None:
    def asked(**request: Any) -> int:
        run = SuiteRun(make_prompts("gsm8k_cot_self_consistency", **request), holder)
        (generation,) = run.generations().values()
        return generation.sampling.n

    assert [asked(), asked(samples=3), asked(samples=100)] == [64, 64, 100]


# -- the window ----------------------------------------------------------------------------


def check(tokens: list[int], window: int, samples: int | None = None) -> None:
    heads = [(number, "d" * 64, size) for number, size in enumerate(tokens)]
    task = TaskPrompts("t", "score", samples or len(tokens), {})
    prompts = SimpleNamespace(
        tasks=[task], file=lambda task: SimpleNamespace(heads=lambda: iter(heads)),
        settings=SimpleNamespace(suite="made"),
    )  # fmt: skip
    SuiteRun(prompts, SimpleNamespace(window=window)).check_window()  # type: ignore[arg-type]


def test_a_window_that_holds_no_question_measures_nothing() -> None:
    with pytest.raises(DataError, match="window of 20 tokens holds no question of made: the short"):
        check([20, 25, 31], 20)
    with pytest.raises(DataError, match="the shortest has 25"):
        check([30, 25, 4], 20, samples=2)


def test_questions_that_are_cut_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    check([19, 20, 1_000], 20)
    said = " ".join(capsys.readouterr().err.split())
    assert "made: 2 of 3 questions are more than the window of 20 tokens holds" in said
    check([19, 3], 20)
    check([19, 3, 40], 20, samples=2)
    assert capsys.readouterr().err == ""


def test_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the pace of what is answered now; what was answered before took no time."""
    now = 100.0
    monkeypatch.setattr("bc2.evaluate.suite_run.time", SimpleNamespace(monotonic=lambda: now))
    clock = _TimeLeft(200)
    assert clock.after(100, now=False) == ""
    assert clock.after(1, now=True) == ""
    now += 60
    assert clock.after(9, now=True) == "0:09:00 left"
    assert clock.after(30, now=False) == "0:06:00 left"
    now += 3600
    assert clock.after(1, now=True) == "5:27:11 left"
    assert clock.after(59, now=True) == ""
