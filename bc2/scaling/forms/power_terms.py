"""A sum of decreasing powers and a constant: the shape that most scaling laws have.

``L = E + sum over k of exp(c_k - e_k x_k)``, with x_k the centred logarithm of variable k.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from bc2.scaling.forms.form import Form
from bc2.scaling.points import Floats

#: Exponents from which fits begin: those of published laws lie between 0.03 and 0.8.
GRID = np.array([0.02, 0.05, 0.1, 0.18, 0.28, 0.4, 0.55, 0.75, 1.1, 1.6])

#: Powers are kept within e to these, so that no trial of the optimizer overflows.
RANGE = (-300.0, 300.0)
_EXPONENTS = (-20.0, 3.0)


def exponents_of(logs: Floats) -> Floats:
    """Exponents of their logarithms, kept within what no law has."""
    return np.asarray(np.exp(np.clip(logs, *_EXPONENTS)))


class PowerTerms(Form):
    """A form with one power term for each variable, and a constant if `constant`.

    ``theta`` is [log E, c_1, log e_1, c_2, log e_2, ...], without log E if there is no constant.
    """

    constant: ClassVar[bool] = True

    def log_loss(self, theta: Floats, x: Floats) -> Floats:
        return np.asarray(np.log(self._parts(theta, x).sum(axis=1)))

    def value_and_jacobian(self, theta: Floats, x: Floats) -> tuple[Floats, Floats]:
        parts = self._parts(theta, x)
        loss = parts.sum(axis=1)
        shares = parts / loss[:, None]
        columns = [shares[:, 0]] if self.constant else []
        for k in range(x.shape[1]):
            share = shares[:, k + self.constant]
            exponent = exponents_of(theta[2 * k + 1 + self.constant])
            columns += [share, -share * exponent * x[:, k]]
        return np.log(loss), np.stack(columns, axis=1)

    def _parts(self, theta: Floats, x: Floats) -> Floats:
        """The constant, if there is one, and each term, [n, terms]."""
        terms = theta[self.constant :].reshape(-1, 2)
        powers = np.exp(np.clip(terms[:, 0] - x * exponents_of(terms[:, 1]), *RANGE))
        if not self.constant:
            return np.asarray(powers)
        constant = np.full((len(x), 1), np.exp(np.clip(theta[0], *RANGE)))
        return np.concatenate([constant, powers], axis=1)

    def starts(self, x: Floats, loss: Floats) -> Iterator[Floats]:
        for exponents in itertools.product(GRID, repeat=x.shape[1]):
            powers = np.exp(-x * np.array(exponents))
            constant = np.ones((len(x), int(self.constant)))
            # Relative errors, as in the objective.
            columns = np.concatenate([constant, powers], axis=1) / loss[:, None]
            scales, _ = nnls(columns, np.ones(len(x)))
            # A term at 0 would have no gradient: it begins small.
            scales = np.log(np.maximum(scales, 1e-3 * loss.min()))
            terms = np.stack([scales[self.constant :], np.log(exponents)], axis=1)
            yield np.concatenate([scales[: self.constant], terms.ravel()])

    def natural(self, theta: Floats, center: Floats) -> tuple[Floats, Floats, Floats]:
        """E, [..., 0 or 1], the logarithms of the scale factors and the exponents, [..., v] each,
        with each variable counted from 1."""
        terms = theta[..., self.constant :].reshape(*theta.shape[:-1], -1, 2)
        exponents = exponents_of(terms[..., 1])
        scales = np.clip(terms[..., 0] + exponents * center, *RANGE)
        return np.exp(np.clip(theta[..., : self.constant], *RANGE)), scales, exponents
