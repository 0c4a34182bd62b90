"""What lm-eval makes of the answers to a task: filtered, and measured sample by sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bc2.errors import RunFailed


@dataclass(frozen=True)
class Judged:
    """One sample."""

    doc_id: int
    doc: Mapping[str, Any]
    target: Any
    filtered: Mapping[str, list[Any]]
    """Filter -> what it made of the answers, one for each request."""
    metrics: Mapping[str, Mapping[str, Any]]
    """Filter -> metric -> value."""


def judge(
    task: Any,
    answers: Mapping[int, Sequence[Sequence[Any]]],
    verdicts: Mapping[int, Sequence[bool]] | None = None,
) -> Iterator[Judged]:
    """Judge samples of a task, in the order of their rows.

    Args:
        task: lm-eval's.
        answers: by row, for each request the responses to it: texts, or pairs of a
            log-likelihood and whether greedy decoding would have given the continuation.
        verdicts: by row, whether the program of each response passed; they are measured in place
            of the responses.

    Raises:
        RunFailed: the task's own code failed on a sample; it is named.
    """
    from lm_eval.api.instance import Instance

    rows = task.eval_docs  # made anew at each access, by some tasks
    docs = {doc_id: rows[doc_id] for doc_id in sorted(answers)}
    instances = {
        doc_id: [
            Instance(task.OUTPUT_TYPE, doc, (), at, (task.task_name, doc_id, 1), list(given))
            for at, given in enumerate(answers[doc_id])
        ]
        for doc_id, doc in docs.items()
    }
    task._instances = [one for group in instances.values() for one in group]
    try:
        task.apply_filters()
        for doc_id, doc in docs.items():
            passed = None if verdicts is None else verdicts[doc_id]
            yield _judged(task, doc_id, doc, instances[doc_id], passed)
    except RunFailed:
        raise
    except Exception as error:  # a filter's own code: no common class
        raise _failed(task.task_name, error) from error
    finally:
        task._instances = None


def _judged(
    task: Any,
    doc_id: int,
    doc: Mapping[str, Any],
    instances: Sequence[Any],
    passed: Sequence[bool] | None,
) -> Judged:
    filtered = {
        name: [one.filtered_resps[name] for one in instances]
        for name in instances[0].filtered_resps
    }
    try:
        metrics = {
            name: task.process_results(doc, given if passed is None else [list(passed)])
            for name, given in filtered.items()
        }
        target = task.doc_to_target(doc)
    except Exception as error:  # the task's own code: no common class
        raise _failed(f"{task.task_name}:{doc_id}", error) from error
    return Judged(doc_id, doc, target, filtered, metrics)


def _failed(where: str, error: Exception) -> RunFailed:
    return RunFailed(
        f"the answers cannot be judged: {type(error).__name__}: {error}",
        where=where,
        todo="look at this sample in the benchmark's files",
    )
