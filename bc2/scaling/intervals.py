"""How far a coefficient or a prediction may be off.

With many points by a bootstrap over runs. With few, where a bootstrap is too sure (a resample of
seven runs often has four distinct ones), by the profile of the sum of squares with Student's t:
a value is in the interval if the law can take it without errors that are larger than the
residuals, of so few degrees of freedom, allow (Bates and Watts 1988, section 6.1).

Every quantity here is above 0 and is treated by its logarithm, the scale on which it is closest
to symmetric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import norm
from scipy.stats import t as student

from bc2.scaling.fit import Fit
from bc2.scaling.forms.form import Form
from bc2.scaling.points import Floats

#: Degrees of freedom from which the bootstrap over runs is used.
BOOTSTRAP_FROM = 20

#: Share of the normal distribution within one standard error.
ONE_SIGMA = 0.6827

#: theta, [..., p] -> logarithm of a quantity, [...].
LogQuantity = Callable[[Floats], Floats]

#: An interval that reaches this far, in nats of log, is open: nothing bounds the quantity.
_FAR = 25.0
#: How stiffly a quantity is held, in its standard errors.
_STIFF = 1e3
#: Noise of log loss below which points count as lying on the law.
_EXACT = 1e-9


@dataclass(frozen=True)
class Interval:
    """A value and the interval around it. An open side is 0 or infinity."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """None for a side without a bound: JSON has no infinity."""
        low, high = (end if np.isfinite(end) else None for end in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high}


def open_interval(value: float) -> Interval:
    """All values of a sign."""
    return Interval(value, 0.0, np.inf) if value >= 0 else Interval(value, -np.inf, 0.0)


class Spread(ABC):
    """What is known of a fit's uncertainty."""

    fit: Fit
    method: str

    @abstractmethod
    def log_bounds(
        self, quantity: LogQuantity, level: float, measurement: float | None = None
    ) -> tuple[float, float]:
        """The ends of the interval of a quantity's logarithm.

        Args:
            level: the share of cases that it is to cover.
            measurement: None: of the law's own value; or the standard deviation of the noise of
                log loss of a measurement, which is then covered.
        """

    def interval(
        self, quantity: LogQuantity, level: float, measurement: float | None = None, sign: int = 1
    ) -> Interval:
        """A quantity with its interval; see `log_bounds`."""
        low, high = self.log_bounds(quantity, level, measurement)
        best = _exp(float(quantity(self.fit.theta)))
        ends = _exp(low), _exp(high)
        return Interval(best, *ends) if sign > 0 else Interval(-best, -ends[1], -ends[0])

    def coefficient(self, index: int, level: float) -> Interval:
        """A coefficient, by its place in the form's symbols."""
        fit = self.fit
        sign = int(np.sign(fit.form.coefficients(fit.theta, fit.center)[index]))
        return self.interval(_coefficient(fit, index), level, sign=sign)

    def standard_errors(self) -> Floats:
        """Of the logarithms of the coefficients, [p]: half the interval of one sigma."""
        ends = [
            self.log_bounds(_coefficient(self.fit, i), ONE_SIGMA)
            for i in range(len(self.fit.theta))
        ]
        return np.array([(high - low) / 2 for low, high in ends])


def _exp(value: float) -> float:
    """Infinite, without a warning, where it is beyond what a number holds."""
    return float(np.exp(value)) if value < 700 else np.inf


def _coefficient(fit: Fit, index: int) -> LogQuantity:
    def log(theta: Floats) -> Floats:
        return np.log(np.abs(fit.form.coefficients(theta, fit.center)[..., index]))

    return log


@dataclass(frozen=True)
class LawAt:
    """The log loss of a law at one set of centred logarithms of its variables, [1, v]."""

    form: Form
    at: Floats

    def __call__(self, theta: Floats) -> Floats:
        each = [self.form.log_loss(one, self.at)[0] for one in theta.reshape(-1, theta.shape[-1])]
        return np.array(each).reshape(theta.shape[:-1])

    def gradient(self, theta: Floats) -> Floats:
        """[p]."""
        return np.asarray(self.form.value_and_jacobian(theta, self.at)[1][0])


def law_at(fit: Fit, x: Floats) -> LawAt:
    """The log loss of the law at one set of natural logarithms of its variables, [v]."""
    return LawAt(fit.form, (x - fit.center)[None])


@dataclass(frozen=True)
class Bootstrap(Spread):
    """Refits to resamples of the runs."""

    fit: Fit
    thetas: Floats
    """[replicates, p]."""
    method: str = "bootstrap over runs"

    @classmethod
    def of(cls, fit: Fit, replicates: int, seed: int = 0) -> Bootstrap:
        rng, size = np.random.default_rng(seed), len(fit.points)
        thetas = []
        for _ in range(replicates):
            weights = np.bincount(rng.integers(0, size, size), minlength=size)
            thetas.append(fit.problem.minimize(fit.theta, weights.astype(np.float64))[1])
        return cls(fit, np.array(thetas))

    def log_bounds(
        self, quantity: LogQuantity, level: float, measurement: float | None = None
    ) -> tuple[float, float]:
        values = np.asarray(quantity(self.thetas))
        if measurement is not None:
            values = values + self._noise(measurement)
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        middle = float(np.median(values))
        wider = self._correction(level)
        return middle + wider * (float(low) - middle), middle + wider * (float(high) - middle)

    def _correction(self, level: float) -> float:
        """What Student's t adds to the normal distribution."""
        tail = (1 + level) / 2
        return float(student.ppf(tail, self.fit.freedom) / norm.ppf(tail))

    def _noise(self, deviation: float) -> Floats:
        """Errors of the points, drawn anew, with a given standard deviation, [replicates]."""
        errors = self.fit.errors
        drawn = np.random.default_rng(1).choice(errors, len(self.thetas))
        return np.asarray(drawn * deviation / np.sqrt(np.mean(errors**2)))


@dataclass(frozen=True)
class Profile(Spread):
    """Profiles of the sum of squares, with Student's t.

    A Huber fit is not the least sum of squares of the points, but it is that of pseudo-values: the
    fit with its errors cut at the threshold, over the share that is not cut (Huber 1981, section
    7.10). The squares are of those, so that no outlier moves or widens an interval.
    """

    fit: Fit
    method: str = field(init=False, default="")

    def __post_init__(self) -> None:
        freedom = self.fit.freedom
        object.__setattr__(self, "method", f"profile of squares, t of {freedom} degrees of freedom")

    @cached_property
    def _measured(self) -> Floats:
        """Log loss, or its pseudo-values, [n]."""
        fit = self.fit
        if np.isinf(fit.huber):
            return fit.problem.log_loss
        errors = fit.errors
        inside = max(float(np.mean(np.abs(errors) <= fit.huber)), 1 / len(errors))
        return np.asarray(
            fit.problem.log_loss - errors + np.clip(errors, -fit.huber, fit.huber) / inside
        )

    @cached_property
    def _least(self) -> Any:
        return least_squares(self._errors, self.fit.theta, self._jacobian, method="lm", xtol=1e-12)

    @property
    def noise(self) -> float:
        """Of a measurement, as the squares have it: `Fit.noise`, but for outliers. Points that lie
        on the law exactly still need a scale."""
        return max(float(np.sqrt(2 * self._least.cost / self.fit.freedom)), _EXACT)

    def _errors(self, theta: Floats) -> Floats:
        problem = self.fit.problem
        return problem.form.log_loss(theta, problem.x) - self._measured

    def _jacobian(self, theta: Floats) -> Floats:
        problem = self.fit.problem
        return problem.form.value_and_jacobian(theta, problem.x)[1]

    def log_bounds(
        self, quantity: LogQuantity, level: float, measurement: float | None = None
    ) -> tuple[float, float]:
        least, noise = self._least, self.noise
        squares = 2 * least.cost
        best = float(quantity(least.x))
        slope = _gradient(quantity, least.x)
        covariance = np.linalg.pinv(least.jac.T @ least.jac)
        error = noise * float(np.sqrt(max(float(slope @ covariance @ slope), 1e-24)))
        # A measurement adds its own noise; it may be larger than that of the residuals.
        if measurement is not None:
            measurement = max(measurement, _EXACT)
        stiffness = noise / error * _STIFF if measurement is None else noise / measurement
        reach = float(student.ppf((1 + level) / 2, self.fit.freedom))
        scale = float(np.hypot(error, 0.0 if measurement is None else measurement))

        # Where a linear law would go for each unit of the quantity.
        gain = covariance @ slope
        gain /= max(float(slope @ gain), 1e-300)

        def end(step: float) -> float:
            near = (best, least.x)

            def beyond(at: float) -> float:
                """Above 0 where the law cannot take the value `at`."""
                nonlocal near
                held = _Held(self, quantity, at, stiffness)
                cost, theta = held.minimum(near[1] + gain * (at - near[0]))
                if 2 * cost - squares > (noise * reach) ** 2:
                    # It may have been a poor start.
                    other = held.minimum(least.x)
                    cost, theta = min((cost, theta), other, key=lambda found: found[0])
                near = (at, theta)
                return float(np.sqrt(max(2 * cost - squares, 0.0)) / noise - reach)

            return _end(beyond, best, step)

        return end(-scale * reach), end(scale * reach)


@dataclass(frozen=True)
class _Held:
    """The sum of squares with a quantity held near a value: one more error, of the quantity."""

    profile: Profile
    quantity: LogQuantity
    at: float
    stiffness: float

    def minimum(self, start: Floats) -> tuple[float, Floats]:
        """The least sum of half squares, and where it is."""
        done = least_squares(self._errors, start, self._jacobian, method="lm", max_nfev=200)
        return float(done.cost), np.asarray(done.x)

    def _errors(self, theta: Floats) -> Floats:
        own = self.stiffness * (float(self.quantity(theta)) - self.at)
        return np.append(self.profile._errors(theta), np.clip(own, -1e100, 1e100))

    def _jacobian(self, theta: Floats) -> Floats:
        own = self.stiffness * _gradient(self.quantity, theta)
        return np.vstack([self.profile._jacobian(theta), own])


def _gradient(quantity: LogQuantity, theta: Floats) -> Floats:
    """The law's own, or by central differences, [p]."""
    if isinstance(quantity, LawAt):
        return quantity.gradient(theta)
    step = 1e-5
    moved = theta + step * np.concatenate([np.eye(len(theta)), -np.eye(len(theta))])
    up, down = np.split(np.asarray(quantity(moved)), 2)
    return (up - down) / (2 * step)


def _end(beyond: Callable[[float], float], best: float, step: float) -> float:
    """Where a profile crosses; infinite where it does not within reach."""
    inside, below = best, -1.0
    outside = best + step
    for _ in range(12):
        above = beyond(outside)
        if above > 0:
            return _crossing(beyond, (inside, below), (outside, above), abs(step) * 5e-3)
        inside, below = outside, above
        outside += 1.7 * (outside - best)
        if abs(outside - best) > max(_FAR, abs(step)):
            break
    return -np.inf if step < 0 else np.inf


def _crossing(
    beyond: Callable[[float], float],
    inside: tuple[float, float],
    outside: tuple[float, float],
    tolerance: float,
) -> float:
    """The root between two places with their values, by false position (Illinois).

    Written out, since a library's begins by evaluating the ends again.
    """
    (a, below), (b, above) = inside, outside
    for _ in range(30):
        at = b - above * (b - a) / (above - below)
        value = beyond(at)
        if abs(value) < 2e-3 or abs(b - a) < tolerance:
            return at
        if value > 0:
            b, above, below = at, value, below / 2
        else:
            a, below, above = at, value, above / 2
    return b


def spread_of(fit: Fit, replicates: int = 1000, seed: int = 0) -> Spread:
    """The way that suits the number of points."""
    if fit.freedom >= BOOTSTRAP_FROM:
        return Bootstrap.of(fit, replicates, seed)
    return Profile(fit)
