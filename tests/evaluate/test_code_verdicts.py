"""Programs are run once, in the order of their samples, and what is known survives a crash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bc2.evaluate.answer_journal import Answered
from bc2.evaluate.code_verdicts import code_verdicts, pass_rates
from bc2.evaluate.samples import Answer
from bc2.sandbox.run import Program


class FakeSandbox:
    """A program passes if it says so; after `lasts` programs the machine goes down."""

    def __init__(self, lasts: int | None = None):
        self.lasts = lasts
        self.ran: list[str] = []

    def run_all(self, programs: Iterable[Program], workers: int, limits: Any) -> Iterator[Any]:
        assert workers >= 1
        for program in programs:
            if len(self.ran) == self.lasts:
                raise KeyboardInterrupt
            self.ran.append(program.candidate)
            assert program.tests == f"test {program.candidate.split()[0]}"
            yield SimpleNamespace(passed="good" in program.candidate)


class Task:
    """MBPP's form: the answer is the program."""

    task_name = "bc2_mbpp"
    asked = 0

    @property
    def eval_docs(self) -> list[dict[str, str]]:
        self.asked += 1
        return [{"tests": f"test {row}", "test_setup_code": "", "code": ""} for row in range(6)]

    def doc_to_target(self, doc: dict[str, str]) -> str:
        return doc["tests"]


ANSWERS = {
    doc: Answered(doc, (Answer(text=f"{doc} good"), Answer(text=f"{doc} bad"))) for doc in range(5)
} | {5: Answered(5, (Answer(text="5 bad"), Answer(text="5 good")))}
EXPECTED = {doc: [True, False] for doc in range(5)} | {5: [False, True]}
PROGRAMS = [one.text for answered in ANSWERS.values() for one in answered.answers]


def judged(sandbox: Any, folder: Path, task: Any = None) -> dict[int, list[bool]]:
    return code_verdicts(sandbox, folder / "verdicts", task or Task(), ANSWERS)


def test_each_program_is_run_once(tmp_path: Path) -> None:
    sandbox, task = FakeSandbox(), Task()
    assert judged(sandbox, tmp_path, task) == EXPECTED
    assert sandbox.ran == PROGRAMS
    assert task.asked == 1
    again = FakeSandbox(lasts=0)
    assert judged(again, tmp_path) == EXPECTED


def test_what_was_found_before_a_crash_is_kept(tmp_path: Path) -> None:
    first = FakeSandbox(lasts=7)
    with pytest.raises(KeyboardInterrupt):
        judged(first, tmp_path)
    again = FakeSandbox()
    assert judged(again, tmp_path) == EXPECTED
    assert first.ran + again.ran == PROGRAMS


def test_verdicts_cut_at_any_byte(tmp_path: Path) -> None:
    judged(FakeSandbox(), tmp_path)
    (path,) = (tmp_path / "verdicts").iterdir()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        again = FakeSandbox()
        assert judged(again, tmp_path) == EXPECTED
        assert len(again.ran) == len(PROGRAMS) - whole[:size].count(b"\n")
        # Two lines may have run into one: then the program is run again, and no other.
        last = FakeSandbox()
        assert judged(last, tmp_path) == EXPECTED
        assert len(last.ran) <= 1


def test_an_answer_without_text_is_a_program_too(tmp_path: Path) -> None:
    sandbox = SimpleNamespace(
        run_all=lambda programs, *_: (SimpleNamespace(passed=False) for _ in programs)
    )
    found = code_verdicts(
        sandbox,  # type: ignore[arg-type]
        tmp_path / "verdicts", Task(), {0: Answered(0, (Answer(text=""),))},
    )  # fmt: skip
    assert found == {0: [False]}


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        ([True], {}),
        ([True] * 9, {}),
        ([True, *[False] * 9], {"pass@10": 1.0}),
        ([False] * 10, {"pass@10": 0.0}),
        ([True, *[False] * 19], {"pass@10": 0.5}),
        ([True, *[False] * 99], {"pass@10": 0.1, "pass@100": 1.0}),
    ],
)
def test_rates_of_as_many_answers_as_there_are(
    passed: list[bool], expected: dict[str, float]
) -> None:
    assert pass_rates(passed) == pytest.approx(expected)
