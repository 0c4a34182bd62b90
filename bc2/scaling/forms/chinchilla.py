"""L(N, D) = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, approach 3."""

from __future__ import annotations

import numpy as np

from bc2.scaling.forms.power_terms import PowerTerms
from bc2.scaling.points import Floats


class _Chinchilla(PowerTerms):
    name = "chinchilla"
    formula = "L(N, D) = E + A / N^alpha + B / D^beta"
    source = "Hoffmann et al. 2022, equation 10 (arXiv 2203.15556)"
    symbols = ("E", "A", "alpha", "B", "beta")
    variables = ("params", "tokens")

    def coefficients(self, theta: Floats, center: Floats) -> Floats:
        constant, scale, exponent = self.natural(theta, center)
        pairs = np.stack([np.exp(scale), exponent], axis=-1)
        return np.concatenate([constant, pairs.reshape(*theta.shape[:-1], -1)], axis=-1)

    def log_optimum(self, theta: Floats, center: Floats, flops: Floats | float) -> Floats:
        """Logarithms of the parameters and tokens with the least loss under C = 6ND, [..., 2].

        Hoffmann et al. 2022, equation 4: where the derivatives of both terms along constant
        N D balance.
        """
        _, scale, exponent = self.natural(theta, center)
        (log_a, log_b), (alpha, beta) = np.moveaxis(scale, -1, 0), np.moveaxis(exponent, -1, 0)
        product = np.log(np.asarray(flops) / 6)
        ratio = np.log(alpha) + log_a - np.log(beta) - log_b
        params = (ratio + beta * product) / (alpha + beta)
        return np.stack([params, product - params], axis=-1)


CHINCHILLA = _Chinchilla()
