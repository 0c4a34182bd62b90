"""What an algorithm measures: the numbers of its steps and evaluations, declared once.

The loop averages and logs them, `bc2 watch` and `bc2 report` show and draw them, `bc2 verify`
compares them, all by this declaration alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Metric:
    """One number that a run logs, of its steps or of its evaluations."""

    name: str
    """Its column in ``metrics.jsonl``; of a step's, also its name in the objective's sums."""
    label: str
    """As tables and pictures call it: ``held-out loss``."""
    unit: str = ""
    """``nats per token``; empty: a plain number."""
    of: Literal["step", "evaluation"] = "step"
    """Whether each step has it, or each evaluation."""
    over: str = "tokens"
    """What it is averaged over: a weight of the step (tokens, samples, pairs), or another of the
    objective's sums; for people, where an evaluation has averaged it already."""
    better: Better | None = None
    """Which way it improves; None: neither is better."""
    headline: bool = False
    """Whether it is the one number that progress shows; one of the steps, one of evaluations."""
    guarded: bool = False
    """Whether a step is bad where it is not finite."""
    short: str = ""
    """In a progress line; empty: the label."""

    @property
    def brief(self) -> str:
        """Its shortest name."""
        return self.short or self.label


@dataclass(frozen=True)
class Metrics:
    """All metrics of an algorithm, in the order in which they are shown.

    Raises:
        ValueError: two of a name, or not one headline metric of the steps and at most one of
            evaluations.
    """

    all: tuple[Metric, ...]

    def __post_init__(self) -> None:
        names = [metric.name for metric in self.all]
        if len(set(names)) < len(names):
            raise ValueError(f"two metrics of one name: {', '.join(names)}")
        heads = [metric.of for metric in self.all if metric.headline]
        if heads.count("step") != 1 or heads.count("evaluation") > 1:
            raise ValueError(
                "one metric of the steps is the headline, and at most one of evaluations"
            )

    @property
    def of_steps(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.all if metric.of == "step")

    @property
    def of_evaluations(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.all if metric.of == "evaluation")

    @property
    def headline(self) -> Metric:
        """The one of the steps that progress shows."""
        return next(metric for metric in self.of_steps if metric.headline)

    @property
    def evaluation_headline(self) -> Metric | None:
        """The one of evaluations that progress shows; None: the algorithm has no evaluation."""
        return next((metric for metric in self.of_evaluations if metric.headline), None)

    @property
    def guarded(self) -> tuple[str, ...]:
        """Names of what a step is bad without."""
        return tuple(metric.name for metric in self.of_steps if metric.guarded)

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(metric) for metric in self.all]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> Metrics:
        """What `as_json` gave, also to a newer version with further fields."""
        known = {field.name for field in fields(Metric)}
        return cls(tuple(Metric(**{k: v for k, v in row.items() if k in known}) for row in rows))
