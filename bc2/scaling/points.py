"""The points that a law is fitted to: finished runs, each with its size, data, compute and loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bc2.errors import DataError

Floats = NDArray[np.float64]

#: What a law can depend on: training FLOPs C, parameters N, training tokens D.
Variable = Literal["flops", "params", "tokens"]
VARIABLES: tuple[Variable, ...] = ("flops", "params", "tokens")

LossUnit = Literal["nats", "bits"]
ParamsConvention = Literal["non-embedding", "total", "unstated"]
FlopsConvention = Literal["6ND", "counted"]

#: Relative difference up to which FLOPs are taken to be 6ND: tables are rounded.
_SAME_FLOPS = 5e-3

#: The least standard deviation, in nats of log, of tokens beside what parameters say of them.
_APART = 0.1


@dataclass(frozen=True)
class Conventions:
    """How the numbers of a table are counted. A law holds for these alone."""

    loss: LossUnit
    """Of the loss, a token."""
    params: ParamsConvention
    """Whether N counts the embedding and the head."""
    flops: FlopsConvention
    """6ND: six times parameters times tokens. counted: what the table or the model says, with
    attention and head."""

    def __str__(self) -> str:
        params = {"unstated": "not stated whether with embeddings"}.get(self.params, self.params)
        flops = {"6ND": "6ND", "counted": "counted, with attention"}[self.flops]
        return f"loss in {self.loss} a token; N: {params}; C: {flops}"


@dataclass(frozen=True)
class Points:
    """Runs as columns of equal length n."""

    names: tuple[str, ...]
    """How each is called: a run's name, or the row of a table."""
    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    conventions: Conventions

    def __post_init__(self) -> None:
        if not len(self.names):
            raise DataError("there are no points to fit", todo="give at least two runs")
        for name in (*VARIABLES, "loss"):
            column = getattr(self, name)
            bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
            if len(bad):
                raise DataError(
                    f"{name} is {column[bad[0]]:g}, and must be a number above 0",
                    where=self.names[bad[0]],
                )

    def __len__(self) -> int:
        return len(self.names)

    def logs(self, variable: Variable) -> Floats:
        """Natural logarithms of a variable, [n]."""
        column: Floats = getattr(self, variable)
        return np.log(column)

    @property
    def log_loss(self) -> Floats:
        return np.log(self.loss)

    def take(self, chosen: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Points:
        """Some of the points: by index, or where a mask is true."""
        at = np.arange(len(self))[np.asarray(chosen)]
        columns = {name: getattr(self, name)[at] for name in (*VARIABLES, "loss")}
        return replace(self, names=tuple(self.names[i] for i in at), **columns)

    def without(self, left_out: Sequence[int] | NDArray[np.intp]) -> Points:
        """All points but some, by index."""
        kept = np.ones(len(self), dtype=bool)
        kept[np.asarray(left_out, dtype=np.intp)] = False
        return self.take(kept)

    def by_flops(self) -> NDArray[np.intp]:
        """Indices in the order of compute; of equal compute, in the order given."""
        return np.argsort(self.flops, kind="stable")

    def distinct(self, variable: Variable) -> int:
        """How many different values a variable has, up to rounding."""
        return len(np.unique(np.round(self.logs(variable), 6)))

    def vary_apart(self) -> bool:
        """Whether N and D vary, and D not only as N does: one can then tell their effects apart."""
        logs = np.stack([self.logs("params"), self.logs("tokens")], axis=1)
        spread = np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False)
        return len(self) > 2 and bool(spread[-1] / np.sqrt(len(self)) > _APART)


def flops_convention(params: Floats, tokens: Floats, flops: Floats) -> FlopsConvention:
    """How FLOPs were counted, as far as N and D show it."""
    with np.errstate(over="ignore", invalid="ignore"):  # `Points` refuses what overflows.
        simple = np.abs(flops / (6 * params * tokens) - 1)
    return "6ND" if bool(np.all(simple < _SAME_FLOPS)) else "counted"
