"""Scores that must be reached, for continuous integration: `--require cmmlu=0.30`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from bc2.errors import RunFailed, UsageError, nearest
from bc2.evaluate.summary import Summary, filter_of, metric_of
from bc2.harness.suites import suite_name

if TYPE_CHECKING:
    from bc2.evaluate.evaluation import EvalRequest
    from bc2.evaluate.suite_prompts import SuiteRows

#: Rounding of a mean over subjects, which must not decide.
_ROUNDING = 1e-12

_FORM = "write SUITE=SHARE or SUITE:METRIC=SHARE, for example cmmlu=0.30 or gsm8k=5%"


@dataclass(frozen=True)
class Requirement:
    """The least score that a suite may have."""

    suite: str
    metric: str | None
    """lm-eval's key, or its metric alone; None is the suite's headline metric."""
    least: float
    """0 to 1."""

    def __str__(self) -> str:
        return f"{self.suite}{':' + self.metric if self.metric else ''}={self.least:g}"


def parse_requirement(text: str) -> Requirement:
    """Read ``cmmlu=0.30``, ``cmmlu=30%`` or ``gsm8k:exact_match,flexible-extract=0.2``.

    Raises:
        UsageError: the text has another form, or the share is not from 0 to 1.
    """
    name, equals, share = text.rpartition("=")
    suite, colon, metric = (part.strip() for part in name.partition(":"))
    if not (equals and suite) or (colon and not metric):
        raise UsageError(f"--require {text} names no suite or score", todo=_FORM)
    return Requirement(suite, metric or None, _share(share.strip(), text))


def _share(written: str, text: str) -> float:
    try:
        value = Decimal(written.removesuffix("%").strip())
        if written.endswith("%"):
            value /= 100
    except ArithmeticError:  # of the division too: sNaN%, 9e999999999999999999%
        raise UsageError(f"--require {text}: {written!r} is no number", todo=_FORM) from None
    if not (value.is_finite() and 0 <= value <= 1):
        meant = value.is_finite() and 1 < value <= 100 and not written.endswith("%")
        raise UsageError(
            f"--require {text}: a score is from 0 to 1",
            todo=f"write {value}% if that is meant" if meant else _FORM,
        )
    return float(value)


def parse_requirements(
    texts: Iterable[str], *, evaluated: Collection[str], known: Collection[str]
) -> list[Requirement]:
    """Read all ``--require`` of a command, before anything is evaluated.

    Args:
        evaluated: suites that the command evaluates.
        known: all suites that there are.

    Raises:
        UsageError: see `parse_requirement`; or a suite is unknown or is not evaluated.
    """
    requirements = [
        replace(each, suite=suite_name(each.suite)) for each in map(parse_requirement, texts)
    ]
    for each in requirements:
        if each.suite in evaluated:
            continue
        if each.suite in known:
            raise UsageError(
                f"--require {each}: {each.suite} is not evaluated",
                todo=f"add it: --bench {','.join([*evaluated, each.suite])}",
            )
        near = nearest(each.suite, [*evaluated, *known])
        raise UsageError(
            f"--require {each}: there is no suite {each.suite}",
            todo=f"take {near}" if near else "see bc2 eval --list",
        )
    return requirements


def check_metrics(
    requirements: Iterable[Requirement], suites: Iterable[SuiteRows], request: EvalRequest
) -> None:
    """See, before anything is evaluated, that there will be the metrics that are required.

    Raises:
        UsageError: a suite has not the metric, or has it after several filters.
    """
    named = [each for each in requirements if each.metric is not None]
    for rows in suites:
        wanted = [each for each in named if each.suite == rows.suite.name]
        if wanted:
            keys = _keys_of(rows, request)
            for each in wanted:
                _key_of(each, keys)


def _keys_of(rows: SuiteRows, request: EvalRequest) -> list[str]:
    """lm-eval's keys of the metrics that a suite will have."""
    from bc2.evaluate.code_verdicts import KS
    from bc2.harness.aggregate import metric_keys

    tasks = list(rows.load(request.shots, request.seed).tasks.values())
    keys = list(dict.fromkeys(key for task in tasks for key in metric_keys(task)))
    if not rows.suite.runs_code:
        return keys
    answers = max(request.samples, *(task.config.repeats for task in tasks))
    filters = dict.fromkeys(map(filter_of, keys))
    return keys + [f"pass@{k},{name}" for k in KS if 1 < k <= answers for name in filters]


def check_required(summaries: Sequence[Summary], requirements: Iterable[Requirement]) -> None:
    """Compare the scores of whole suites with what is required.

    Raises:
        UsageError: a suite has no score, or not the metric.
        RunFailed: scores are too low; all of them are named.
    """
    wholes = {each.suite: each for each in summaries if each.subject is None}
    failed = []
    for required in requirements:
        if required.suite not in wholes:
            raise UsageError(f"--require {required}: {required.suite} was not evaluated")
        key, value = _value_of(required, wholes[required.suite])
        if value is None or value < required.least - _ROUNDING:
            found = "not a number" if value is None else f"{value:.6g}"
            failed.append(f"{required.suite}: {key} is {found}, {required.least:g} is required")
    if failed:
        one = "a score is" if len(failed) == 1 else f"{len(failed)} scores are"
        raise RunFailed("\n  ".join([f"{one} too low:", *failed]))


def _value_of(required: Requirement, summary: Summary) -> tuple[str, float | None]:
    values = {summary.metric: summary.score, **summary.others}
    if required.metric is None:
        return summary.metric, summary.score
    key = _key_of(required, values)
    return key, values[key]


def _key_of(required: Requirement, keys: Iterable[str]) -> str:
    """The one of lm-eval's keys that is meant. Raises: UsageError if there is none, or several."""
    keys = list(keys)
    meant = [key for key in keys if required.metric in (key, metric_of(key))]
    if len(meant) != 1:
        many = f"{required.metric} has several filters" if meant else f"no metric {required.metric}"
        raise UsageError(
            f"--require {required}: {many}", todo=f"take one of {', '.join(sorted(meant or keys))}"
        )
    return meant[0]
