"""What a law is fitted with: recorded in place of a recipe. Imports no NumPy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bc2.recipe import Settings


class LawSettings(Settings):
    """The points of a law and how it is fitted: all that its result depends on."""

    form: Literal["power", "kaplan-n", "kaplan-d", "kaplan", "chinchilla", "isoflop"]
    """Which form; see `bc2.scaling.forms` and `bc2.scaling.isoflop`."""
    optima: bool = False
    """For isoflop: the points are the optima of budgets already, and have no loss."""
    names: tuple[str, ...]
    """How each point is called."""
    params: tuple[float, ...]
    """N of each point, counted as `count_params` says."""
    tokens: tuple[float, ...]
    """Training tokens D of each point."""
    flops: tuple[float, ...]
    """Training FLOPs C of each point, counted as `count_flops` says."""
    loss: tuple[float, ...]
    """Final held-out loss of each point, in `loss_unit` a token. Empty for optima."""
    loss_unit: Literal["nats", "bits"]
    """Unit of the loss, a token."""
    count_params: Literal["non-embedding", "total", "unstated"]
    """Whether N counts the embedding and the head."""
    count_flops: Literal["6ND", "counted"]
    """6ND, or as the model or the table counts, with attention and head."""
    huber: float | None = Field(None, gt=0)
    """Errors of log loss beyond it count linearly. None: 0.001 from 30 points on, and a sum of
    squares with fewer."""
    level: float = Field(0.8, gt=0, lt=1)
    """Share of cases that intervals are to cover."""
    replicates: int = Field(1000, ge=50)
    """Refits of the bootstrap."""
    seed: int = Field(0, ge=0)
    """Of the bootstrap."""
    seed_noise: float | None = Field(None, gt=0)
    """Standard deviation of log loss between runs that differ in their seed alone, if known."""

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        columns = [self.params, self.tokens, self.flops, *([] if self.optima else [self.loss])]
        if {len(column) for column in columns} != {len(self.names)}:
            raise ValueError("the columns of the points differ in length")
        return self
