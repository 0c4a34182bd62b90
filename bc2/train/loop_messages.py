"""What the training loop says: of its steps, and of why it ends and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bc2.errors import BadTraining, Bc2Error, RunFailed
from bc2.train.measured import Measured
from bc2.train.metric import Metrics
from bc2.train.stream import StepData, StepSpan


def progress_line(
    metrics: Metrics,
    measured: Mapping[str, float],
    evaluated: Mapping[str, Any] | None,
    speed: Mapping[str, float],
) -> str:
    """A step: the number of it, and that of the last evaluation, that tell how the run goes.

    Args:
        measured: as `TrainedModels.measure` returns it.
        evaluated: the row of the last evaluation.
        speed: as `Speed.of` returns it.
    """
    shown = [f"{metrics.headline.brief} {measured[metrics.headline.name]:.3f}"]
    of_evaluations = metrics.evaluation_headline
    if evaluated and of_evaluations:
        shown.append(f"{of_evaluations.brief} {float(evaluated[of_evaluations.name]):.3f}")
    clipped = "*" if measured["clipped"] else ""
    return "  ".join(
        [
            *shown,
            f"|g| {measured['grad_norm']:.2f}{clipped}",
            f"lr {measured['lr']:.1e}",
            f"{speed['tokens_per_s']:,.0f} tok/s",
            f"MFU {100 * speed['mfu']:.0f}%",
        ]
    )


def bad_step_line(reason: str, place: StepSpan, sources: Mapping[str, int], then: str) -> str:
    """A bad step, where its samples are from, and what is done about it."""
    counts = ", ".join(f"{name} {count}" for name, count in sources.items())
    return f"{reason} at {place}{f' ({counts})' if counts else ''}: {then}"


def no_weight(divisor: str, step: StepData) -> RunFailed:
    """A step's losses are to be divided by nothing."""
    what = {"tokens": "supervised token"}.get(divisor, divisor)
    return RunFailed(
        f"no {what} in samples {step.first} to {step.first + step.sequences - 1}",
        todo="look at the data: every label of the batch is masked"
        if divisor == "tokens"
        else f"look at the data: a step needs {divisor} to learn from",
    )


def none_good(steps: int) -> BadTraining:
    """The run has ended, and every step of it was skipped: the model is what it began as."""
    return BadTraining(
        f"every one of the {steps} steps was bad and skipped: nothing was learnt",
        todo="look at the reasons above: the data, or the learning rate",
    )


def too_bad(reason: str, worst: int, place: StepSpan, section: str) -> BadTraining:
    """The run ends at a bad step.

    Args:
        worst: bad steps or rollbacks without progress, this one counted.
        section: of the recipe.
    """
    return BadTraining(
        f"{reason} (bad steps or rollbacks without progress: {worst})",
        where=str(place),
        todo=f"look at these samples; a higher {section}.guard.max_bad goes on from the "
        "last checkpoint, another learning rate or other settings of the guard are another run",
    )


def not_finite(metrics: Metrics, measured: Measured) -> BadTraining:
    """The last evaluation is broken."""
    labels = {metric.name: metric.label for metric in metrics.of_evaluations}
    name = measured.broken[0]
    return BadTraining(
        f"the {labels.get(name, name)} is {measured.facts[name]} after the last step, "
        "so the model is not published as finished",
        todo="another learning rate or precision is another run",
    )


@contextmanager
def named(place: str) -> Iterator[None]:
    """Add the place in the run to an error."""
    try:
        yield
    except Bc2Error as error:
        if error.where is None:
            error.where = place
        else:
            error.what += f", at {place}"
        raise
