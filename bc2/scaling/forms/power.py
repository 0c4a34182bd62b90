"""L(C) = a C^b + L_inf: the law of Baichuan 2, section 2.6."""

from __future__ import annotations

import numpy as np

from bc2.scaling.forms.power_terms import PowerTerms
from bc2.scaling.points import Floats


class _Power(PowerTerms):
    name = "power"
    formula = "L(C) = a C^b + L_inf"
    source = "Baichuan 2, section 2.6 (arXiv 2309.10305)"
    symbols = ("L_inf", "a", "b")
    variables = ("flops",)

    def coefficients(self, theta: Floats, center: Floats) -> Floats:
        constant, scale, exponent = self.natural(theta, center)
        return np.concatenate([constant, np.exp(scale), -exponent], axis=-1)


POWER = _Power()
