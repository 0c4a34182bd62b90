"""Find the coefficients of a form: the least sum of Huber losses of the errors of log loss.

The sum and not the mean: with a mean an optimizer's stopping rule, which looks at absolute
changes, is met before the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize

from bc2.errors import RunFailed
from bc2.scaling.forms.form import Form
from bc2.scaling.points import Floats, Points

#: Errors of log loss beyond this count linearly: Hoffmann et al. 2022, section 3.3.
HUBER = 1e-3

#: From so many points on; with fewer the few residuals cannot tell an outlier, and the sum of
#: squares, which uses all of each point, is the better estimate.
HUBER_FROM = 30

#: How many of the starts, the best ones, are followed to their ends.
_FOLLOWED = 12

#: A start has reached the best value if its own is within this share above it.
_REACHED = 1e-6

_ROUNDS = 20


@dataclass(frozen=True)
class Problem:
    """A form, the points it is fitted to and the objective."""

    form: Form
    x: Floats
    """Centred logarithms of the form's variables, [n, v]."""
    log_loss: Floats
    """[n]."""
    huber: float
    """The threshold; infinite for a sum of squares."""

    def objective(self, theta: Floats, weights: Floats | None = None) -> tuple[float, Floats]:
        """The sum over points and its gradient, [p]."""
        value, jacobian = self.form.value_and_jacobian(theta, self.x)
        error = value - self.log_loss
        inside = np.clip(error, -self.huber, self.huber)
        terms = inside * (error - inside / 2)
        slope = inside
        if weights is not None:
            terms, slope = weights * terms, weights * slope
        return float(terms.sum()), slope @ jacobian

    def minimize(self, start: Floats, weights: Floats | None = None) -> tuple[float, Floats]:
        """A local minimum, by L-BFGS in coordinates in which the problem is round.

        Begun again from where it ended until that gains nothing: near the optimum the Huber
        loss is almost that of absolute errors, on which a single descent stops early.
        """
        theta, best = start, self.objective(start, weights)[0]
        for _ in range(_ROUNDS):
            found = self._descend(theta, weights)
            value = self.objective(found, weights)[0]
            if not value < best:
                break
            gained, theta, best = best - value, found, value
            if gained <= 1e-9 * best:
                break
        return best, theta

    def _descend(self, start: Floats, weights: Floats | None) -> Floats:
        _, jacobian = self.form.value_and_jacobian(start, self.x)
        metric = jacobian.T @ jacobian
        metric += np.eye(len(start)) * (1e-10 * np.trace(metric) + 1e-300)
        to_theta = np.linalg.inv(np.linalg.cholesky(metric)).T

        def objective(z: Floats) -> tuple[float, Floats]:
            value, gradient = self.objective(start + to_theta @ z, weights)
            return value, gradient @ to_theta

        # A line search may try what overflows; it then tries less.
        options = {"maxiter": 500, "maxcor": 20, "ftol": 1e-14, "gtol": 1e-12}
        done = minimize(
            objective, np.zeros(len(start)), jac=True, method="L-BFGS-B", options=options
        )
        return np.asarray(start + to_theta @ done.x)


@dataclass(frozen=True)
class Fit:
    """A form with its coefficients."""

    form: Form
    points: Points
    center: Floats
    """The logarithms of the variables' geometric means, [v]."""
    theta: Floats
    """[p]; see `Form`."""
    objective: float
    """The sum of Huber losses (of half squares, if `huber` is infinite)."""
    huber: float
    starts: int
    """How many starts were followed."""
    reached: int
    """How many of them reached the best value."""

    @property
    def coefficients(self) -> dict[str, float]:
        found = self.form.coefficients(self.theta, self.center)
        return dict(zip(self.form.symbols, map(float, found), strict=True))

    @cached_property
    def problem(self) -> Problem:
        x = self.form.logs(self.points) - self.center
        return Problem(self.form, x, self.points.log_loss, self.huber)

    @property
    def freedom(self) -> int:
        """Degrees of freedom: points more than coefficients."""
        return len(self.points) - len(self.theta)

    @cached_property
    def errors(self) -> Floats:
        """Logarithm of measured over fitted loss, [n]."""
        return self.points.log_loss - self.form.log_loss(self.theta, self.problem.x)

    @property
    def noise(self) -> float:
        """Standard deviation of an error of log loss, from the sum of squares."""
        return float(np.sqrt(np.sum(self.errors**2) / max(1, self.freedom)))

    @property
    def condition(self) -> float:
        """Of the derivatives by theta, each scaled to unit length: how nearly the points fail to
        tell coefficients apart. Above about 1e4 they do."""
        _, jacobian = self.form.value_and_jacobian(self.theta, self.problem.x)
        lengths = np.linalg.norm(jacobian, axis=0)
        return float(np.linalg.cond(jacobian / np.where(lengths > 0, lengths, 1)))

    def log_loss(self, x: Floats) -> Floats:
        """The law's log loss at natural logarithms of its variables, [m, v] -> [m]."""
        return self.form.log_loss(self.theta, x - self.center)


def fit(form: Form, points: Points, huber: float | None = None) -> Fit:
    """The best fit of a form.

    Args:
        huber: the threshold; None: `HUBER`, or a sum of squares with fewer than `HUBER_FROM`
            points.

    Raises:
        RunFailed: no start led to finite coefficients.
    """
    if huber is None:
        huber = HUBER if len(points) >= HUBER_FROM else np.inf
    logs = form.logs(points)
    center = logs.mean(axis=0)
    problem = Problem(form, logs - center, points.log_loss, huber)
    starts = sorted(
        form.starts(problem.x, points.loss), key=lambda theta: problem.objective(theta)[0]
    )
    ends = [problem.minimize(theta) for theta in starts[:_FOLLOWED]]
    ends = [end for end in ends if np.isfinite(end[0]) and np.all(np.isfinite(end[1]))]
    if not ends:
        raise RunFailed(f"no fit of {form.name} was found", todo="try another --form")
    best, theta = min(ends, key=lambda end: end[0])
    reached = sum(value <= best * (1 + _REACHED) + 1e-15 for value, _ in ends)
    return Fit(form, points, center, theta, best, huber, len(ends), reached)
