"""Which answers of a suite of programs pass their tests; each program is run once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.evaluate.answer_journal import Answered
from bc2.harness.code_tasks import program_of
from bc2.ranks import threads_of_each
from bc2.sandbox.limits import Limits
from bc2.sandbox.pass_at_k import pass_at_k

if TYPE_CHECKING:
    from bc2.sandbox.run import Program, Sandbox

#: The k of pass@k that are reported where there are as many answers to a prompt.
KS = (1, 10, 100)


class CodeVerdicts:
    """Verdicts on the programs of one task, kept in a file so that none is run twice.

    Args:
        path: of the file; it need not exist.
    """

    def __init__(self, path: Path, sandbox: Sandbox, limits: Limits | None = None):
        self._path = path
        self._sandbox = sandbox
        self._limits = limits or Limits()

    def of(self, task: Any, answered: Mapping[int, Answered]) -> dict[int, list[bool]]:
        """By row, whether each answer passed."""
        known = self._read()
        wanted = [
            (doc_id, number)
            for doc_id, one in answered.items()
            for number in range(len(one.answers))
            if (doc_id, number) not in known
        ]
        programs = self._programs(task, answered, wanted)
        outcomes = self._sandbox.run_all(programs, threads_of_each(1), self._limits)
        with self._path.open("a") as lines:
            for (doc_id, number), outcome in zip(wanted, outcomes, strict=True):
                known[doc_id, number] = outcome.passed
                lines.write(json.dumps([doc_id, number, outcome.passed]) + "\n")
                lines.flush()
        return {
            doc_id: [known[doc_id, number] for number in range(len(one.answers))]
            for doc_id, one in answered.items()
        }

    def _programs(
        self, task: Any, answered: Mapping[int, Answered], wanted: list[tuple[int, int]]
    ) -> Iterator[Program]:
        for doc_id, number in wanted:
            text = answered[doc_id].answers[number].text or ""
            yield program_of(task, task.eval_docs[doc_id], text)

    def _read(self) -> dict[tuple[int, int], bool]:
        known: dict[tuple[int, int], bool] = {}
        lines = self._path.read_text().split("\n") if self._path.exists() else []
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
