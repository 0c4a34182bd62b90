"""lm-eval's own totals of tasks and groups, and what a task says about its metrics."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

#: Values of all samples by (metric, filter), as `lm_eval.evaluator.evaluate` gathers them.
RawMetrics = Mapping[tuple[str, str], list[Any]]

#: Draws for the standard error of metrics that are no means; lm-eval's default.
BOOTSTRAP_ITERS = 100_000


def aggregate(
    scored: Mapping[str, tuple[Any, RawMetrics]],
    groups: Mapping[str, Any] | None = None,
    *,
    bootstrap_iters: int = BOOTSTRAP_ITERS,
) -> dict[str, Any]:
    """What lm-eval makes of values: the keys ``results`` to ``n-samples`` of its results file.

    Standard errors are lm-eval's here: those of groups are not clustered by subject.

    Args:
        scored: by name, lm-eval's task and its values.
        groups: lm-eval's groups by name, with the tasks in them.
        bootstrap_iters: see `BOOTSTRAP_ITERS`; 0 leaves out all standard errors, those of means
            too, as in lm-eval. It costs time only where a metric is no mean.
    """
    from lm_eval.evaluator_utils import _process_results

    accumulated = {
        name: {"task": task, "raw_metrics": dict(values), "logged_samples": []}
        for name, (task, values) in scored.items()
    }
    with _quiet_and_alone():
        found = _process_results(accumulated, dict(groups or {}), bootstrap_iters)
    return dict(found._to_eval_results())


@contextlib.contextmanager
def _quiet_and_alone() -> Iterator[None]:
    """Keep lm-eval's bootstrap off stdout, and from forking a process that has threads.

    It draws the same in one process.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def other_aggregations(task: Any) -> dict[str, Callable[[list[Any]], float]]:
    """By metric, how lm-eval's task makes one value of all, where it does not take the mean."""
    from lm_eval.api.metrics import mean

    return {name: made for name, made in task.aggregation().items() if made is not mean}


def metric_keys(task: Any) -> list[str]:
    """lm-eval's keys of a task's metrics, ``METRIC,FILTER``."""
    return [f"{metric},{made.name}" for metric in task.aggregation() for made in task._filters]


def chance_of(task: Any, metric: str, limit: int | None) -> float | None:
    """Accuracy of a blind guess at the first `limit` questions; None where there is none.

    Args:
        metric: without its filter.
    """
    if task.OUTPUT_TYPE != "multiple_choice" or metric not in ("acc", "acc_norm", "acc_bytes"):
        return None
    shares = [1 / len(task.doc_to_choice(doc)) for doc in islice(task.eval_docs, limit)]
    return sum(shares) / len(shares)


def extraction_fallbacks(task: Any) -> dict[str, str]:
    """By filter of lm-eval's task that extracts an answer: what it gives where it finds none.

    Of several extractions in a filter the last counts: it is given what the ones before found.
    """
    fallbacks = {}
    for ensemble in task._filters:
        for make in ensemble.filters:
            fallback = getattr(make(), "fallback", None)
            if isinstance(fallback, str):
                fallbacks[ensemble.name] = fallback
    return fallbacks
