"""HumanEval and MBPP: which program an answer makes, and what its verdict counts.

Nothing here runs a program. A caller makes one with `program_of`, has the sandbox run it, and gives
the verdicts to the task's `process_results` where other tasks are given answers.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lm_eval.api.task import Task

Doc = Mapping[str, Any]


class Program(NamedTuple):
    """An answer and what decides about it: the tests run after the candidate, in one module."""

    candidate: str
    tests: str
    redefines: tuple[str, ...] = ()
    """What the candidate is asked to define; the tests mean it, if a builtin has the same name."""


def program_of(task: Task, doc: Doc, answer: str) -> Program:
    """The program that an answer to a question of `bc2_humaneval` or `bc2_mbpp` makes.

    Args:
        answer: cut at the task's stop texts.

    Raises:
        KeyError: the task runs no code.
    """
    return _PROGRAMS[task.task_name](doc, answer, task.doc_to_target(doc))


def _of_humaneval(doc: Doc, answer: str, tests: str) -> Program:
    return Program(_completed(doc, answer), tests, (doc["entry_point"],))


def _of_mbpp(doc: Doc, answer: str, tests: str) -> Program:
    """lm-eval leaves out what one task sets up for its tests; without it no answer could pass."""
    setup = doc["test_setup_code"]
    return Program(answer, f"{setup}\n{tests}" if setup else tests, _defined(doc["code"]))


def _completed(doc: Doc, answer: str) -> str:
    return str(doc["prompt"]) + answer


def _defined(code: str) -> tuple[str, ...]:
    """Names of the functions and classes at the top of a program."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return tuple(node.name for node in ast.parse(code).body if isinstance(node, kinds))


_PROGRAMS: dict[str, Callable[[Doc, str, str], Program]] = {
    "bc2_humaneval": _of_humaneval,
    "bc2_mbpp": _of_mbpp,
}


# -- named by the tasks' YAML files --------------------------------------------------------


def humaneval_candidates(resps: Iterable[Iterable[str]], docs: Iterable[Doc]) -> list[list[str]]:
    """The filter ``create_test``: each answer behind its prompt."""
    return [
        [_completed(doc, answer) for answer in answers]
        for answers, doc in zip(resps, docs, strict=True)
    ]


def humaneval_results(doc: Doc, results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """``pass@1``: the share of a question's answers that passed.

    Args:
        results: one item, the verdicts of all answers to the question.
    """
    return {"pass@1": _share(results)}


def mbpp_results(doc: Doc, results: Sequence[Sequence[bool]]) -> dict[str, float]:
    """As `humaneval_results`, under the name of lm-eval's mbpp."""
    return {"pass_at_1": _share(results)}


def _share(results: Sequence[Sequence[bool]]) -> float:
    (verdicts,) = results
    return sum(map(float, verdicts)) / len(verdicts)


def mbpp_shots(docs: Any) -> Any:
    """The tasks of MBPP's split ``prompt`` that its paper shows: 2, 3 and 4."""
    return docs.filter(lambda doc: doc["task_id"] in (2, 3, 4))
