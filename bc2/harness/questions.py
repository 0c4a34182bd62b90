"""The prompts of a task, one question after another, exactly as lm-eval makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from bc2.errors import DataError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task


@dataclass(frozen=True)
class Question:
    """One row of a task that is scored."""

    doc_id: int
    """Its place in the split, from 0."""
    doc: dict[str, Any]
    requests: list[Instance]
    """What the model is asked: one for each choice, or one to be continued."""


def questions(task: Task, limit: int | None = None) -> Iterator[Question]:
    """Build a task's questions in order, one at a time; memory does not grow with their number.

    Shots that a task draws at random depend on the questions before: start at the first and ask
    once after each `load_suite`, or the shots are others.

    Raises:
        DataError: a row cannot be made a prompt, or its answer is none of its choices.
    """
    for doc_id, doc in islice(enumerate(task.eval_docs), limit):
        try:
            yield Question(doc_id, doc, _requests(task, doc_id, doc))
        except (KeyError, TypeError, ValueError, IndexError, AssertionError, SyntaxError) as error:
            raise _unfit(task, doc_id, error) from error


def _requests(task: Task, doc_id: int, doc: dict[str, Any]) -> list[Instance]:
    context = task.fewshot_context(
        doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc)
    )
    made = task.construct_requests(
        doc=doc, ctx=context, metadata=(task.config["task"], doc_id, task.config.repeats)
    )
    return made if isinstance(made, list) else [made]


def _unfit(task: Task, doc_id: int, error: Exception) -> DataError:
    lines = str(error).strip().splitlines()
    return DataError(
        f"cannot make a prompt of this row: {lines[0] if lines else type(error).__name__}",
        where=f"{task.task_name}:{doc_id}",
        todo="repair the release, or fetch it again",
    )
