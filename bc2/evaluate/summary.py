"""Samples of a suite become scores: of the suite as a whole and of each subject."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from bc2.errors import RunFailed, nearest
from bc2.evaluate.samples import Sample
from bc2.evaluate.statistics import (
    LEVEL,
    ScoreInterval,
    clustered_standard_error,
    mean,
    mean_of_subjects,
    near_chance,
    score_interval,
    standard_error,
    unclustered_standard_error,
)
from bc2.evaluate.tally import TaskTally, check_extracted

Aggregation = Callable[[list[Any]], float]


@dataclass(frozen=True)
class SuiteFacts:
    """What must be known of a suite to judge its samples; nothing of it needs lm-eval."""

    suite: str
    headline: str
    """lm-eval's key of the metric that stands for the suite: ``acc,none``."""
    shots: int | None = None
    chance: float | Mapping[str, float | None] | None = None
    """Score of guessing, of all tasks or of each; None where one cannot guess."""
    clustered: bool = True
    """Whether samples of a subject go together in the standard error, if there are several."""
    weighted: bool = True
    """Whether the suite's score is the mean over samples; else over subjects."""
    percent: bool = True
    """Whether the headline metric is a share, 0 to 1."""
    aggregations: Mapping[str, Aggregation] = field(default_factory=dict)
    """By metric, where the value of a task is not the mean of its samples'."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """By filter that extracts: what it gives where it finds nothing (``[invalid]``)."""
    subjects: Mapping[str, str] = field(default_factory=dict)
    """Names of tasks for people; the task's own name where there is none."""
    layout: str | None = None
    """The chat layout of the prompts; None: they are plain texts."""


@dataclass(frozen=True)
class Summary:
    """The score of a suite or of one of its subjects."""

    suite: str
    subject: str | None
    """None is the suite as a whole."""
    metric: str
    """lm-eval's key of the headline metric."""
    score: float
    stderr: float | None
    """None where it is not known: one sample, or a metric that is no mean."""
    interval: ScoreInterval | None
    level: float
    """Confidence of `interval` and of the label."""
    chance: float | None
    label: Literal["", "near chance"]
    mean_of: Literal["samples", "subjects"]
    """What the score is the mean of; differs only for a suite of several subjects."""
    clusters: int
    """Subjects over which `stderr` was taken; 0 if it was taken over samples."""
    percent: bool
    shots: int | None
    samples: int
    cut: int
    """Samples of which a prompt was cut to fit the window."""
    at_limit: int
    """Samples of which an answer ended at the length limit."""
    not_extracted: Mapping[str, float] | None
    """By filter, the share of samples in which it found no answer; None: nothing is extracted."""
    others: Mapping[str, float | None]
    """All other metrics by lm-eval's key; None is not a finite number."""
    layout: str | None = None
    """The chat layout of the prompts; None: they are plain texts."""

    @property
    def not_extracted_share(self) -> float | None:
        """Of the headline metric's filter."""
        return (self.not_extracted or {}).get(filter_of(self.metric))

    def to_json(self) -> dict[str, Any]:
        """As JSON data, without `layout` where there is none; `from_json` reads it."""
        found = asdict(self)
        if self.layout is None:
            del found["layout"]
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Summary:
        found = value["interval"]
        return cls(**{**value, "interval": None if found is None else ScoreInterval(*found)})


def metric_of(key: str) -> str:
    """The metric in lm-eval's key ``metric,filter``."""
    return key.partition(",")[0]


def filter_of(key: str) -> str:
    """The filter in lm-eval's key ``metric,filter``."""
    return key.partition(",")[2]


def summarize(samples: Iterable[Sample], facts: SuiteFacts) -> list[Summary]:
    """The suite as a whole, then its subjects in their order if there are several.

    Samples are taken one at a time and not kept.

    Raises:
        RunFailed: there are no samples, the headline metric is missing or not a finite number,
            or no answer could be extracted from any sample.
    """
    tallies: dict[str, TaskTally] = {}
    example: Sample | None = None
    for sample in samples:
        tallies.setdefault(sample.task, TaskTally()).add(sample, facts.fallbacks)
        example = example or sample
    if example is None:
        raise RunFailed(f"{facts.suite} has no samples", todo="check its files and --limit")
    _check_headline(tallies, facts)
    check_extracted(facts.suite, filter_of(facts.headline), list(tallies.values()), example)
    suite = _Suite(facts, tallies)
    if len(tallies) == 1:
        return [suite.summary(list(tallies), None)]
    subjects = [suite.summary([task], facts.subjects.get(task, task)) for task in tallies]
    return [suite.summary(list(tallies), None), *subjects]


def _check_headline(tallies: Mapping[str, TaskTally], facts: SuiteFacts) -> None:
    for task, tally in tallies.items():
        if facts.headline not in tally.values:
            near = nearest(facts.headline, tally.values)
            raise RunFailed(
                f"{facts.suite}: samples of {task} have no metric {facts.headline}",
                where=f"they have {', '.join(sorted(tally.values)) or 'none'}",
                todo=f"take {near}" if near else None,
            )


class _Error(NamedTuple):
    """A standard error, and the subjects over which it was taken: see `Summary`."""

    stderr: float | None
    clusters: int = 0


class _Suite:
    """All tasks of a suite, judged."""

    def __init__(self, facts: SuiteFacts, tallies: Mapping[str, TaskTally]):
        self._facts = facts
        self._tallies = tallies
        self._values = {task: self._metrics(tally) for task, tally in tallies.items()}
        self._is_mean = metric_of(facts.headline) not in facts.aggregations

    def _metrics(self, tally: TaskTally) -> dict[str, float]:
        """All metrics of one task by lm-eval's keys."""
        aggregations = self._facts.aggregations
        return {
            key: float(aggregations.get(metric_of(key), mean)(found))
            for key, found in tally.values.items()
        }

    def summary(self, tasks: Sequence[str], subject: str | None) -> Summary:
        """The score of some tasks together."""
        facts, tallies = self._facts, [self._tallies[task] for task in tasks]
        keys = dict.fromkeys(key for task in tasks for key in self._values[task])
        values = {key: self._together({t: self._values[t].get(key) for t in tasks}) for key in keys}
        score = values.pop(facts.headline)
        if not math.isfinite(score):
            raise RunFailed(
                f"{facts.suite}: {facts.headline} of {subject or 'all samples'} is {score}",
                todo="look for samples whose log-likelihoods are not finite",
            )
        error, chance = self._error(tallies), self._chance(tasks)
        interval = self._interval(tallies, score, error)
        return Summary(
            suite=facts.suite,
            subject=subject,
            metric=facts.headline,
            score=score,
            stderr=error.stderr,
            interval=interval,
            level=LEVEL,
            chance=chance,
            label="near chance" if near_chance(interval, chance) else "",
            mean_of="samples" if facts.weighted or len(tasks) == 1 else "subjects",
            clusters=error.clusters,
            percent=facts.percent,
            shots=facts.shots,
            samples=sum(tally.samples for tally in tallies),
            cut=sum(tally.cut for tally in tallies),
            at_limit=sum(tally.at_limit for tally in tallies),
            not_extracted=_missed_shares(tallies),
            others={key: v if math.isfinite(v) else None for key, v in values.items()},
            layout=facts.layout,
        )

    def _together(self, values: Mapping[str, float | None]) -> float:
        """The mean over the tasks that have a value, as lm-eval's groups have it."""
        known = {task: value for task, value in values.items() if value is not None}
        if len(known) == 1:
            return next(iter(known.values()))  # v n / n may differ from v in the last bit
        sizes = [self._tallies[task].size for task in known]
        return mean_of_subjects(list(known.values()), sizes, weighted=self._facts.weighted)

    def _chance(self, tasks: Sequence[str]) -> float | None:
        given = self._facts.chance
        if not isinstance(given, Mapping):
            return given
        chances = {task: given[task] for task in tasks}
        return None if None in chances.values() else self._together(chances)

    def _error(self, tallies: Sequence[TaskTally]) -> _Error:
        """Of the mean over samples or over subjects, whichever the score is."""
        if not self._is_mean:
            return _Error(None)
        found = [tally.values[self._facts.headline] for tally in tallies]
        samples = [value for values in found for value in values]
        if len(found) == 1:
            return _Error(standard_error(samples))
        if self._facts.clustered and self._facts.weighted:
            clusters = [number for number, values in enumerate(found) for _ in values]
            return _Error(clustered_standard_error(samples, clusters), len(found))
        if self._facts.clustered:
            return _Error(standard_error([mean(values) for values in found]), len(found))
        if self._facts.weighted:
            return _Error(standard_error(samples))
        return _Error(unclustered_standard_error([standard_error(values) for values in found]))

    def _interval(
        self, tallies: Sequence[TaskTally], score: float, error: _Error
    ) -> ScoreInterval | None:
        if not self._is_mean:
            return None
        samples = [value for tally in tallies for value in tally.values[self._facts.headline]]
        return score_interval(samples, score, error.stderr, clusters=error.clusters)


def _missed_shares(tallies: Sequence[TaskTally]) -> dict[str, float] | None:
    """By filter that extracts, the share of samples in which it found no answer."""
    names = dict.fromkeys(name for tally in tallies for name in tally.missed)
    samples = sum(tally.samples for tally in tallies)
    shares = {name: sum(t.missed.get(name, 0) for t in tallies) / samples for name in names}
    return shares or None
