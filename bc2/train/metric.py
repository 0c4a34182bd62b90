"""What an algorithm measures: the numbers of its steps and evaluations, declared once.

The loop averages and logs them, `bc2 watch` and `bc2 report` show and draw them, `bc2 verify`
compares them, all by this declaration alone. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache, cached_property
from typing import Any, Literal, get_args

Better = Literal["lower", "higher"]
Shown = Literal["curve", "figure", "log"]

#: What the row of a step has of each trained model: the product's by these names, another's as
#: ``ROLE.NAME``. They are shown without being declared.
MODEL_COLUMNS = ("grad_norm", "clipped", "lr")

#: What a row has beside what is measured.
_PLACE = ("event", "step", "tokens", "samples")


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
    shown: Shown = "curve"
    """Where it is seen: drawn and in tables, as a figure of tables alone, or only in the log."""

    def __post_init__(self) -> None:
        """Raises: ValueError if it is not what its fields may be, as one read from a file."""
        texts = (self.name, self.label, self.unit, self.over, self.short)
        if not all(isinstance(text, str) for text in texts) or not self.name or not self.label:
            raise ValueError(f"a metric needs a name and a label, and all of it is text: {texts}")
        if not (isinstance(self.headline, bool) and isinstance(self.guarded, bool)):
            raise ValueError(f"whether {self.name} is the headline, or guarded, is no yes or no")
        if self.of not in ("step", "evaluation"):
            raise ValueError(f"{self.name} is of {self.of!r}, and not of a step or an evaluation")
        if self.better not in (*get_args(Better), None):
            raise ValueError(f"{self.name} is better {self.better!r}, and not lower or higher")
        if self.shown not in get_args(Shown):
            raise ValueError(f"{self.name} is shown as {self.shown!r}, and not {get_args(Shown)}")
        if self.name in _PLACE or column_of_model(self.name):
            raise ValueError(f"the column {self.name} is taken: a metric needs another name")

    @property
    def brief(self) -> str:
        """Its shortest name."""
        return self.short or self.label


@cache  # asked of every column of every row
def column_of_model(column: str) -> tuple[str, str] | None:
    """The role and what is told of it, if a column of a step's row is of a trained model.

    The role is empty of the product, which has no prefix.
    """
    role, _, name = column.rpartition(".")
    return (role, name) if name in MODEL_COLUMNS else None


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

    @cached_property
    def of_steps(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.all if metric.of == "step")

    @cached_property
    def of_evaluations(self) -> tuple[Metric, ...]:
        return tuple(metric for metric in self.all if metric.of == "evaluation")

    @cached_property
    def headline(self) -> Metric:
        """The one of the steps that progress shows."""
        return next(metric for metric in self.of_steps if metric.headline)

    @cached_property
    def evaluation_headline(self) -> Metric | None:
        """The one of evaluations that progress shows; None: the algorithm has no evaluation."""
        return next((metric for metric in self.of_evaluations if metric.headline), None)

    def check_evaluation(self, facts: Mapping[str, float]) -> None:
        """Raises: ValueError if an evaluation lacks what is declared of it."""
        for metric in self.of_evaluations:
            if metric.name not in facts:
                raise ValueError(f"an evaluation lacks the declared metric {metric.name}")

    @property
    def guarded(self) -> tuple[str, ...]:
        """Names of what a step is bad without."""
        return tuple(metric.name for metric in self.of_steps if metric.guarded)

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(metric) for metric in self.all]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> Metrics:
        """What `as_json` gave, also to a newer version with further fields.

        Raises:
            ValueError: it is not what `as_json` gives.
        """
        known = {field.name for field in fields(Metric)}
        try:
            found = [Metric(**{k: v for k, v in row.items() if k in known}) for row in rows]
        except (AttributeError, TypeError) as error:
            raise ValueError(f"not a list of metrics: {error}") from error
        return cls(tuple(found))
