"""Which answers of a suite of programs pass their tests; each program is run once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.console import progress
from bc2.evaluate.answer_journal import Answered
from bc2.harness.code_tasks import program_of
from bc2.ranks import threads_of_each
from bc2.sandbox.limits import Limits
from bc2.sandbox.pass_at_k import pass_at_k
from bc2.sandbox.run import Program

if TYPE_CHECKING:
    from bc2.sandbox.run import Sandbox

#: The k of pass@k that are reported where there are as many answers to a prompt.
KS = (1, 10, 100)


def code_verdicts(
    sandbox: Sandbox, folder: Path, task: Any, answered: Mapping[int, Answered]
) -> dict[int, list[bool]]:
    """By row of a task of lm-eval, whether the program of each answer passes its tests.

    Args:
        folder: where verdicts are kept, so that no program is run twice; it need not exist.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{task.task_name}.jsonl"
    known = _read(path)
    wanted = [
        (doc_id, number)
        for doc_id, one in answered.items()
        for number in range(len(one.answers))
        if (doc_id, number) not in known
    ]
    outcomes = sandbox.run_all(_programs(task, answered, wanted), threads_of_each(1), Limits())
    with (
        path.open("a", encoding="utf-8") as lines,
        progress(f"{task.task_name}: running", len(wanted)) as bar,
    ):
        for (doc_id, number), outcome in zip(wanted, outcomes, strict=True):
            known[doc_id, number] = outcome.passed
            lines.write(json.dumps([doc_id, number, outcome.passed]) + "\n")
            lines.flush()
            bar(1)
    return {
        doc_id: [known[doc_id, number] for number in range(len(one.answers))]
        for doc_id, one in answered.items()
    }


def _programs(
    task: Any, answered: Mapping[int, Answered], wanted: Sequence[tuple[int, int]]
) -> Iterator[Program]:
    rows = task.eval_docs
    for doc_id, number in wanted:
        text = answered[doc_id].answers[number].text or ""
        yield Program(*program_of(task, rows[doc_id], text))


def _read(path: Path) -> dict[tuple[int, int], bool]:
    known: dict[tuple[int, int], bool] = {}
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for line in lines[:-1]:  # what follows the last line break is incomplete
        try:
            doc_id, number, passed = json.loads(line)
        except ValueError:  # two lines run into one where a crash cut the first
            continue
        known[doc_id, number] = passed
    return known


def pass_rates(passed: list[bool]) -> dict[str, float]:
    """pass@k for each k of `KS` above 1 that there are answers for."""
    answers, correct = len(passed), sum(passed)
    return {f"pass@{k}": pass_at_k(answers, correct, k) for k in KS if 1 < k <= answers}
