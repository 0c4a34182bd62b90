"""What is kept of a task's samples once they are judged: values and counts, no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.errors import RunFailed
from bc2.evaluate.samples import Sample

#: Characters of an answer that an error shows.
_SHOWN = 120


class TaskTally:
    """Values and counts of the samples of one task."""

    def __init__(self) -> None:
        self.samples = 0
        self.cut = 0
        """Samples of which a prompt was cut to fit the window."""
        self.at_limit = 0
        """Samples of which an answer ended at the length limit."""
        self.values: dict[str, list[Any]] = {}
        """By lm-eval's key of a metric (``acc,none``), one a sample that has it."""
        self.missed: dict[str, int] = {}
        """By filter that extracts, samples in which it found no answer."""

    def add(self, sample: Sample, fallbacks: Mapping[str, str]) -> None:
        """Count a sample.

        Args:
            fallbacks: by filter that extracts, what it gives where it finds nothing.
        """
        self.samples += 1
        self.cut += any(answer.cut for answer in sample.answers)
        self.at_limit += any(answer.met_limit for answer in sample.answers)
        for name, metrics in sample.metrics.items():
            for metric, value in metrics.items():
                self.values.setdefault(f"{metric},{name}", []).append(value)
        for name in fallbacks.keys() & sample.filtered.keys():
            missed = all(_is_missed(given, fallbacks[name]) for given in sample.filtered[name])
            self.missed[name] = self.missed.get(name, 0) + missed

    @property
    def size(self) -> int:
        """What lm-eval weights a task of a group by: values of the metric that has most."""
        return max(map(len, self.values.values()), default=0)


def _is_missed(given: Any, fallback: str) -> bool:
    """Whether a filter found nothing in a response, or in any of its repeats."""
    if isinstance(given, list | tuple):
        return all(_is_missed(each, fallback) for each in given)
    return bool(given == fallback)


def check_extracted(suite: str, name: str, tallies: list[TaskTally], example: Sample) -> None:
    """A score of 0.0 that no answer stands behind says nothing about the model.

    Args:
        name: the filter of the headline metric.
        example: a sample of the suite to show.

    Raises:
        RunFailed: the filter extracts, and found no answer in any sample.
    """
    samples = sum(tally.samples for tally in tallies)
    if any(tally.missed.get(name, 0) < tally.samples for tally in tallies):
        return
    at_limit = sum(tally.at_limit for tally in tallies)
    longer = f"{at_limit:,} answers ended at the length limit: allow more tokens; or "
    raise RunFailed(
        f"{suite}: the filter {name} found an answer in none of {samples:,} samples, so there "
        "is no score",
        where=f"{example.task}, sample {example.doc_id} answered {_shown(example)}",
        todo=f"{longer if at_limit else ''}give more shots, which show the form of an answer, "
        "and check that the tokenizer is the model's",
    )


def _shown(sample: Sample) -> str:
    text = next((answer.text for answer in sample.answers if answer.text), "")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
