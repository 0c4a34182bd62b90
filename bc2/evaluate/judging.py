"""Judge what was answered: one sample after another, with lm-eval's filters and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bc2.errors import RunFailed
from bc2.evaluate.answer_journal import Answered, AnswerJournal, units_of
from bc2.evaluate.code_verdicts import pass_rates
from bc2.evaluate.prompts import TaskPrompts
from bc2.evaluate.samples import Answer, Sample
from bc2.evaluate.suite_prompts import SuitePrompts
from bc2.harness.judge import judge

#: Of a task of lm-eval and the answers to it, by row whether each answer's program passed.
Verdicts = Callable[[Any, Mapping[int, Answered]], Mapping[int, list[bool]]]


def judged_samples(
    prompts: SuitePrompts, task: TaskPrompts, journal: AnswerJournal, verdicts: Verdicts | None
) -> Iterator[Sample]:
    """The samples of one task, in the order of their rows.

    Args:
        verdicts: on programs, where the answers are programs.

    Raises:
        RunFailed: a sample has no answer, or cannot be judged; it is named.
    """
    answered = _answered(task, journal)
    own = prompts.loaded.tasks[task.task]
    heads = prompts.file(task).heads()
    digests = {doc_id: digest for doc_id, digest, _ in heads if doc_id in answered}
    responses = {doc_id: _responses(task, one.answers) for doc_id, one in answered.items()}
    passed = verdicts(own, answered) if verdicts is not None else None
    for judged in judge(own, responses, passed):
        rates = {} if passed is None else pass_rates(passed[judged.doc_id])
        yield Sample(
            suite=prompts.settings.suite,
            task=task.task,
            doc_id=judged.doc_id,
            doc=judged.doc,
            prompt=None,
            prompt_digest=digests[judged.doc_id],
            target=judged.target,
            answers=answered[judged.doc_id].answers,
            filtered=judged.filtered,
            metrics={name: {**found, **rates} for name, found in judged.metrics.items()},
        )


def _answered(task: TaskPrompts, journal: AnswerJournal) -> dict[int, Answered]:
    found: dict[int, Answered] = {}
    for unit in units_of(task):
        answers = journal.read(unit)
        missing = set(range(unit.first, unit.last)) - set(answers)
        if missing:
            raise RunFailed(
                f"{len(missing)} samples of {task.task} were not answered",
                where=f"{task.task}:{min(missing)}",
                todo="run the same again: it goes on from there",
            )
        found |= answers
    return found


def _responses(task: TaskPrompts, answers: Sequence[Answer]) -> list[list[Any]]:
    """What lm-eval calls responses: for each request a list, of one for each repeat."""
    if task.kind == "generate":
        return [[answer.text for answer in answers]]
    if task.kind == "rolling":
        return [[answer.log_prob] for answer in answers]
    return [[(answer.log_prob, answer.greedy)] for answer in answers]
