"""What a form of a scaling law is: a function of a run's size, data or compute with p coefficients.

A form is fitted in the coordinates ``theta``, [p], in which the fit is well conditioned: the
logarithms of scale factors, at the geometric mean of the points rather than at 1, and of
exponents, so that every coefficient is above 0 and no bound is needed. What people read are the
coefficients, [p], in the form's own symbols.

Legend: n points, p coefficients, v variables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bc2.scaling.points import Floats, Points, Variable


@dataclass(frozen=True)
class Form(ABC):
    """One form of a law, without coefficients."""

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    symbols: ClassVar[tuple[str, ...]]
    """Of the p coefficients, as they are printed."""
    variables: ClassVar[tuple[Variable, ...]]
    """What the loss depends on, in the order of the columns of ``x``."""

    def logs(self, points: Points) -> Floats:
        """The variables' natural logarithms, [n, v]."""
        return self.logs_of(points.params, points.tokens, points.flops)

    def logs_of(self, params: Floats, tokens: Floats, flops: Floats) -> Floats:
        """The natural logarithms of the form's variables, [n, v], of columns [n]."""
        columns = {"params": params, "tokens": tokens, "flops": flops}
        return np.log(np.stack([columns[variable] for variable in self.variables], axis=1))

    @abstractmethod
    def log_loss(self, theta: Floats, x: Floats) -> Floats:
        """The logarithm of the loss, [n].

        Args:
            theta: [p].
            x: centred logarithms of the variables, [n, v].
        """

    @abstractmethod
    def value_and_jacobian(self, theta: Floats, x: Floats) -> tuple[Floats, Floats]:
        """`log_loss`, [n], and its derivatives by ``theta``, [n, p]."""

    @abstractmethod
    def starts(self, x: Floats, loss: Floats) -> Iterator[Floats]:
        """Where a fit may begin, by variable projection: for fixed exponents the rest of the
        problem is linear, so that a grid over the exponents alone covers it."""

    @abstractmethod
    def coefficients(self, theta: Floats, center: Floats) -> Floats:
        """The coefficients in the order of `symbols`, [..., p].

        Args:
            theta: [..., p].
            center: the logarithms that were taken off the variables, [v].
        """
