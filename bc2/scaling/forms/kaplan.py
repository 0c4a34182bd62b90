"""The laws of Kaplan et al. 2020 (arXiv 2001.08361): without a constant, L goes to 0.

L(N) and L(D) hold where the other is not what limits (equations 1.1 and 1.2); L(N, D) is
equation 1.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import nnls

from bc2.scaling.forms.form import Form
from bc2.scaling.forms.power_terms import GRID, RANGE, PowerTerms, exponents_of
from bc2.scaling.points import Floats


class _One(PowerTerms):
    """L = (X_c / X)^alpha of one variable."""

    constant = False

    def coefficients(self, theta: Floats, center: Floats) -> Floats:
        _, scale, exponent = self.natural(theta, center)
        return np.concatenate([np.exp(np.clip(scale / exponent, *RANGE)), exponent], axis=-1)


class _KaplanSize(_One):
    name = "kaplan-n"
    formula = "L(N) = (N_c / N)^alpha_N"
    source = "Kaplan et al. 2020, equation 1.1 (arXiv 2001.08361)"
    symbols = ("N_c", "alpha_N")
    variables = ("params",)


class _KaplanData(_One):
    name = "kaplan-d"
    formula = "L(D) = (D_c / D)^alpha_D"
    source = "Kaplan et al. 2020, equation 1.2 (arXiv 2001.08361)"
    symbols = ("D_c", "alpha_D")
    variables = ("tokens",)


class _Kaplan(Form):
    """L(N, D). ``theta`` is [log N_c, log alpha_N, log D_c, log alpha_D], with N and D centred.

    With u = (alpha_N / alpha_D) (log N_c - log N) and v = log D_c - log D, the logarithm of the
    loss is alpha_D log(e^u + e^v).
    """

    name = "kaplan"
    formula = "L(N, D) = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D"
    source = "Kaplan et al. 2020, equation 1.5 (arXiv 2001.08361)"
    symbols = ("N_c", "alpha_N", "D_c", "alpha_D")
    variables = ("params", "tokens")

    def log_loss(self, theta: Floats, x: Floats) -> Floats:
        u, v = self._exponents(theta, x)
        return np.asarray(exponents_of(theta[3]) * np.logaddexp(u, v))

    def value_and_jacobian(self, theta: Floats, x: Floats) -> tuple[Floats, Floats]:
        log_n, (alpha_n, alpha_d) = theta[0], exponents_of(theta[[1, 3]])
        u, v = self._exponents(theta, x)
        total = np.logaddexp(u, v)
        share = np.exp(u - total)
        gap = log_n - x[:, 0]
        columns = [
            share * alpha_n,
            share * gap * alpha_n,
            (1 - share) * alpha_d,
            alpha_d * total - share * alpha_n * gap,
        ]
        return np.asarray(alpha_d * total), np.stack(columns, axis=1)

    def _exponents(self, theta: Floats, x: Floats) -> tuple[Floats, Floats]:
        log_n, log_alpha_n, log_d, log_alpha_d = theta
        ratio = exponents_of(log_alpha_n) / exponents_of(log_alpha_d)
        return ratio * (log_n - x[:, 0]), log_d - x[:, 1]

    def starts(self, x: Floats, loss: Floats) -> Iterator[Floats]:
        for alpha_n, alpha_d in itertools.product(GRID, repeat=2):
            ratio = alpha_n / alpha_d
            root = loss ** (1 / alpha_d)
            columns = np.exp(-x * np.array([ratio, 1.0])) / root[:, None]
            if not np.all(np.isfinite(columns)):
                continue
            scales, _ = nnls(columns, np.ones(len(x)))
            log_n, log_d = np.log(np.maximum(scales, 1e-9 * max(scales.max(), 1e-300)))
            yield np.array([log_n / ratio, np.log(alpha_n), log_d, np.log(alpha_d)])

    def coefficients(self, theta: Floats, center: Floats) -> Floats:
        shifted = np.array(theta, dtype=np.float64)
        shifted[..., 0] += center[0]
        shifted[..., 2] += center[1]
        return np.exp(np.clip(shifted, *RANGE))


KAPLAN_SIZE, KAPLAN_DATA, KAPLAN = _KaplanSize(), _KaplanData(), _Kaplan()
