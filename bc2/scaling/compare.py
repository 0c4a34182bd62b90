"""Which forms the points determine, how each predicts what it was not fitted to, and which points
decide a coefficient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from bc2.errors import DataError
from bc2.scaling.fit import Fit, fit
from bc2.scaling.forms import FORMS, form_of
from bc2.scaling.forms.form import Form
from bc2.scaling.forms.power_terms import PowerTerms
from bc2.scaling.intervals import Profile, Spread, law_at
from bc2.scaling.points import Floats, Points

#: From so many points on that vary N and D apart, Chinchilla's form is the default.
CHINCHILLA_FROM = 7

#: Share of the points with the most compute that is held out, at least one.
_HELD_OUT = 0.1

#: Probability of naming an outlier where there is none.
_OUTLIER = 0.01

#: At most so many points are left out one by one, and so many held-out ones have intervals.
_REFITTED, _WITH_INTERVALS = 400, 20

#: Share of the points that is looked at from each end for a group.
_END = 1 / 12
_LARGEST_GROUP = 40


def undetermined(form: Form, points: Points) -> str | None:
    """Why the points do not determine a form, or None if they do."""
    needed = len(form.symbols) + 1
    if len(points) < needed:
        return f"{form.name} has {len(form.symbols)} coefficients and needs {needed} points"
    # A constant beside a term takes one value more to be told from it.
    values = 3 if isinstance(form, PowerTerms) and form.constant else 2
    for variable in form.variables:
        distinct = points.distinct(variable)
        if distinct < values:
            of = {"flops": "C", "params": "N", "tokens": "D"}[variable]
            return f"{form.name} needs {values} values of {of}, and there are {distinct}"
    if len(form.variables) > 1 and not points.vary_apart():
        return f"{form.name} needs N and D that vary apart, and here D goes with N"
    return None


def choose_form(name: str | None, points: Points) -> Form:
    """The form that was asked for, or the default for these points.

    Raises:
        DataError: the points do not determine it; it names the forms that they do. Or all
            have one loss.
    """
    if np.ptp(points.log_loss) == 0:
        what = f"all {len(points)} points have the same loss, {points.loss[0]:g}"
        raise DataError(what, todo="check the column of the loss")
    if name == "kaplan" and not points.vary_apart():
        name = "kaplan-n" if points.distinct("params") > 1 else "kaplan-d"
    if name is None:
        many = len(points) >= CHINCHILLA_FROM and undetermined(FORMS["chinchilla"], points) is None
        name = "chinchilla" if many else "power"
    form = form_of(name)
    reason = undetermined(form, points)
    if reason is None:
        return form
    fit_in = [form.name for form in FORMS.values() if undetermined(form, points) is None]
    offered = f"--form {' or '.join(fit_in)} would do" if fit_in else "add runs"
    what = f"{len(points)} points do not determine the law: {reason}"
    raise DataError(what, where="--form", todo=offered)


@dataclass(frozen=True)
class HeldOut:
    """How a form, fitted to the smaller runs, predicts the ones with the most compute."""

    form: str
    fitted: int
    names: tuple[str, ...]
    """The runs that were held out."""
    error: float
    """Root mean square of log measured over predicted loss: 0.01 is one per cent."""
    intervals: float
    """The largest miss in half-widths of the interval of a measurement: above 1 is outside."""


def held_out(form: Form, points: Points, level: float, huber: float | None) -> HeldOut | None:
    """Fit to the smaller runs and predict the rest; None if what is left determines no law."""
    order = points.by_flops()
    count = max(1, int(_HELD_OUT * len(points)))
    left, last = points.take(order[:-count]), points.take(order[-count:])
    if undetermined(form, left) is not None:
        return None
    found = fit(form, left, huber)
    x = form.logs(last)
    misses = last.log_loss - found.log_loss(x)
    profile = Profile(found)
    worst = 0.0
    for at in np.argsort(-np.abs(misses))[:_WITH_INTERVALS]:
        miss = misses[at]
        low, high = profile.log_bounds(law_at(found, x[at]), level, profile.noise)
        predicted = float(found.log_loss(x[at : at + 1])[0])
        half = high - predicted if miss > 0 else predicted - low
        worst = max(worst, abs(float(miss)) / half)
    error = float(np.sqrt(np.mean(misses**2)))
    return HeldOut(form.name, len(left), last.names, error, worst)


def compare_forms(points: Points, level: float, huber: float | None) -> list[HeldOut]:
    """All forms that the points without the held-out ones determine, the best first."""
    found = (held_out(form, points, level, huber) for form in FORMS.values())
    return sorted((one for one in found if one), key=lambda one: one.error)


@dataclass(frozen=True)
class Influence:
    """Points without which a coefficient would differ by more than its standard error."""

    names: tuple[str, ...]
    symbol: str
    value: float
    without: float
    errors: float
    """The change, in standard errors of the coefficient's logarithm."""
    end: str
    """Where a group stands ("lowest tokens_per_param"); empty for a single point."""


def influential(spread: Spread) -> list[Influence]:
    """Single points, and groups at an end, that move a coefficient by more than its error.

    Of groups the one is named without which most is gained. It ends where one more point gains
    less than the points of that end do on average, the knee of the curve.
    """
    errors = spread.standard_errors()
    if not np.all(np.isfinite(errors) & (errors > 0)):
        outlier = _outlier(spread.fit)
        if outlier is not None:
            return [outlier]
    refit = _Refit(spread.fit, errors)
    points = spread.fit.points
    singles = [
        refit.moved([at], refit.without([at])[1], "") for at in _most_influential(spread.fit)
    ]
    named = sorted((one for one in singles if one), key=lambda one: -one.errors)
    ends = [(_knee(refit, order), end, order) for end, order in _ends(points)]
    (_, size, theta), end, order = max(ends, key=lambda one: one[0][0])
    group = refit.moved(list(order[:size]), theta, end) if size > 1 else None
    return ([group] if group else []) + named


def _most_influential(found: Fit) -> NDArray[np.intp]:
    """The points whose leaving out may move most, by one step of Newton's method; all if few."""
    _, jacobian = found.form.value_and_jacobian(found.theta, found.problem.x)
    inside = np.clip(found.errors, -found.huber, found.huber)
    steps = jacobian @ np.linalg.pinv(jacobian.T @ jacobian) * inside[:, None]
    scale = np.maximum(np.abs(steps).max(axis=0), 1e-300)
    order: NDArray[np.intp] = np.argsort(-(np.abs(steps) / scale).max(axis=1), kind="stable")
    return np.sort(order[:_REFITTED])


def _outlier(found: Fit) -> Influence | None:
    """The point with which a least-squares fit determines no coefficients, and without which it
    does. Standard errors that the point itself made cannot name it: they are those without it."""
    points, form = found.points, found.form
    rest = [points.without([at]) for at in range(len(points))]
    if found.freedom < 2 or np.isfinite(found.huber) or any(undetermined(form, p) for p in rest):
        return None
    fits = [fit(form, one, found.huber) for one in rest]
    at = int(np.argmin([one.objective for one in fits]))
    best, freedom = fits[at], found.freedom - 1
    # The test of the largest of n externally studentized residuals.
    reach = float(student.ppf(1 - _OUTLIER / 2 / len(points), freedom))
    if (found.objective - best.objective) * freedom <= reach**2 * best.objective:
        return None
    before, after = (np.array(list(one.coefficients.values())) for one in (found, best))
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(np.log(after / before)) / Profile(best).standard_errors()
    moved = np.where(np.isfinite(moved), moved, 0)
    worst = int(np.argmax(moved))
    if moved[worst] <= 1:
        return None
    return Influence(
        (points.names[at],), form.symbols[worst], float(before[worst]), float(after[worst]),
        float(moved[worst]), "",
    )  # fmt: skip


def _ends(points: Points) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Each end of each variable, and the points from there."""
    keys: dict[str, Floats] = {
        "flops": points.flops, "params": points.params, "tokens": points.tokens,
        "tokens_per_param": points.tokens / points.params,
    }  # fmt: skip
    for name, column in keys.items():
        order = np.argsort(column, kind="stable")
        yield f"lowest {name}", order
        yield f"highest {name}", order[::-1]


def _knee(refit: _Refit, order: NDArray[np.intp]) -> tuple[float, int, Floats]:
    """How much more than in proportion leaving out a group gains, its size and the fit without."""
    most = min(int(len(order) * _END), _LARGEST_GROUP, refit.fit.freedom - 1)
    values, thetas = [refit.fit.objective], [refit.fit.theta]
    for size in range(1, most + 1):
        value, theta = refit.without(list(order[:size]), thetas[-1])
        values.append(value)
        thetas.append(theta)
    gained = 1 - np.array(values) / max(refit.fit.objective, 1e-300)
    above = gained - gained[-1] * np.arange(len(gained)) / max(1, most)
    size = int(np.argmax(above))
    return float(above[size]), size, thetas[size]


@dataclass(frozen=True)
class _Refit:
    fit: Fit
    errors: Floats
    """Standard errors of the coefficients' logarithms, [p]."""

    def without(self, left_out: list[int], start: Floats | None = None) -> tuple[float, Floats]:
        """The objective and theta of the other points."""
        weights = np.ones(len(self.fit.points))
        weights[left_out] = 0
        return self.fit.problem.minimize(self.fit.theta if start is None else start, weights)

    def moved(self, left_out: list[int], theta: Floats, end: str) -> Influence | None:
        """What leaving points out changes, if that is more than a standard error."""
        found = self.fit
        if undetermined(found.form, found.points.without(left_out)) is not None:
            return None
        before = found.form.coefficients(found.theta, found.center)
        after = found.form.coefficients(theta, found.center)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.abs(np.log(np.abs(after)) - np.log(np.abs(before))) / self.errors
        moved = np.where(np.isfinite(moved), moved, 0)
        worst = int(np.argmax(moved))
        if moved[worst] <= 1:
            return None
        return Influence(
            tuple(found.points.names[at] for at in sorted(left_out)),
            found.form.symbols[worst],
            float(before[worst]),
            float(after[worst]),
            float(moved[worst]),
            end,
        )
