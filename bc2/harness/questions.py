"""The prompts of a task, one question after another, exactly as lm-eval makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from bc2.errors import DataError
from bc2.streams import first_line

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


@dataclass(frozen=True)
class ChatForm:
    """How lm-eval makes chats of prompts."""

    template: Callable[..., str]
    """A prompt of messages, called as `lm_eval.api.model.LM.apply_chat_template` is."""
    multiturn: bool
    """Whether each shot is a turn of the user and one of the assistant, lm-eval's default; else
    all is in the user's one turn."""


def questions(
    task: Task, limit: int | None = None, chat: ChatForm | None = None
) -> Iterator[Question]:
    """Build a task's questions in order, one at a time; memory does not grow with their number.

    Shots that a task draws at random depend on the questions before: start at the first and ask
    once after each `load_suite`, or the shots are others.

    Args:
        chat: None: prompts are plain texts.

    Raises:
        DataError: a row cannot be made a prompt, or its answer is none of its choices.
    """
    for doc_id, doc in islice(enumerate(task.eval_docs), limit):
        try:
            requests = _requests(task, doc_id, doc, chat)
            _check_answer(task, doc)
        except DataError as error:  # of a chat layout
            raise DataError(
                error.what, where=f"{task.task_name}:{doc_id}", todo=error.todo
            ) from error
        except Exception as error:  # of a template or a task's own code: no common class
            raise DataError(
                f"cannot make a question of this row: {first_line(error)}",
                where=f"{task.task_name}:{doc_id}",
                todo="repair the release, or fetch it again",
            ) from error
        yield Question(doc_id, doc, requests)


def _requests(
    task: Task, doc_id: int, doc: dict[str, Any], chat: ChatForm | None
) -> list[Instance]:
    applied: dict[str, Any] = {}
    shown: dict[str, Any] = {}
    if chat is not None:
        applied = {"apply_chat_template": True, "chat_template": chat.template}
        shown = {**applied, "fewshot_as_multiturn": chat.multiturn}
    context = task.fewshot_context(
        doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc), **shown
    )
    made = task.construct_requests(
        doc=doc, ctx=context, metadata=(task.config["task"], doc_id, task.config.repeats),
        **applied,
    )  # fmt: skip
    return made if isinstance(made, list) else [made]


def _check_answer(task: Task, doc: dict[str, Any]) -> None:
    """See that the right choice is one of the choices: lm-eval counts it wrong, and -1 the last.

    Raises:
        ValueError: it is not.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices = task.doc_to_choice(doc)
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    for one in right if isinstance(right, list) else [right]:
        if one not in (range(len(choices)) if isinstance(one, int) else choices):
            raise ValueError(f"the answer is {one!r}, of {len(choices)} choices")
