"""A fitted law: coefficients with intervals, how far it can be trusted, and what it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bc2.errors import DataError, IntegrityError, UsageError
from bc2.registry import Artifact
from bc2.scaling.compare import HeldOut, Influence, compare_forms, influential
from bc2.scaling.fit import Fit, fit
from bc2.scaling.forms import FORMS
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.intervals import (
    Bootstrap,
    Interval,
    LogQuantity,
    Spread,
    law_at,
    open_interval,
    spread_of,
)
from bc2.scaling.law_config import LawSettings
from bc2.scaling.points import Conventions, Floats, Points

LAW = "law.json"
POINTS = "points.csv"
REPLICATES = "replicates.npy"

#: A constant below this share of the lowest loss, or an exponent outside of these, is at a bound.
_LEAST_CONSTANT, _LEAST_EXPONENT, _LARGEST_EXPONENT = 1e-3, 2e-3, 3.0

EXPONENTS = ("b", "alpha", "beta", "alpha_N", "alpha_D")

#: Where a law falls by less than this share over the range of the points, it is a constant.
_FALL = 1e-6

#: Above this condition the points hardly tell the coefficients apart.
ILL_CONDITIONED = 1e4


@dataclass(frozen=True)
class Law:
    """A fit and what is known of its uncertainty."""

    settings: LawSettings
    fit: Fit
    spread: Spread

    @classmethod
    def of(cls, settings: LawSettings) -> Law:
        """Fit it.

        Raises:
            DataError: the loss does not fall with any variable of the form.
        """
        found = fit(FORMS[settings.form], points_of(settings), settings.huber)
        _refuse_constant(found)
        return cls(settings, found, spread_of(found, settings.replicates, settings.seed))

    @classmethod
    def load(cls, artifact: Artifact) -> Law:
        """A registered law, without fitting it again.

        Raises:
            IntegrityError: its files are not what was published.
        """
        saved = json.loads(artifact.file(LAW).read_text(encoding="utf-8"))
        settings = LawSettings.model_validate_json(json.dumps(saved["settings"]), strict=True)
        if settings.form == "isoflop":
            raise UsageError(
                f"{artifact.title} is an IsoFLOP law: it has optima and no losses",
                where="--law",
                todo="fit --form chinchilla to the same points",
            )
        form, points = FORMS[settings.form], points_of(settings)
        inner = saved["fit"]
        found = Fit(
            form, points, np.array(inner["center"]), np.array(inner["theta"]), inner["objective"],
            inner["huber"] or np.inf, inner["starts"], inner["reached"],
        )  # fmt: skip
        if REPLICATES not in artifact.files():
            return cls(settings, found, spread_of(found))
        thetas = np.load(artifact.file(REPLICATES))
        if thetas.shape[1:] != found.theta.shape:
            raise IntegrityError("the replicates are of another form", where=str(artifact.path))
        return cls(settings, found, Bootstrap(found, thetas))

    @property
    def points(self) -> Points:
        return self.fit.points

    @property
    def level(self) -> float:
        return self.settings.level

    @property
    def noise(self) -> float:
        """Of a measurement: standard deviation of log loss, of the residuals or, where that is
        more, between seeds."""
        return max(self.fit.noise, self.settings.seed_noise or 0.0)

    @cached_property
    def coefficients(self) -> dict[str, Interval]:
        """By symbol, with intervals: open ones for what the points do not determine."""
        open_ = self._undetermined
        return {
            name: open_interval(value)
            if name in open_
            else self.spread.coefficient(place, self.level)
            for place, (name, value) in enumerate(self.fit.coefficients.items())
        }

    @property
    def _undetermined(self) -> set[str]:
        """Coefficients at a bound: where a term does not vary, its scale factor says nothing, and
        a profile that begins where nothing changes would not end."""
        symbols = self.fit.form.symbols
        scales = {symbols[symbols.index(name) - 1] for name in self.at_bound if name in EXPONENTS}
        return {*self.at_bound, *scales}

    @property
    def at_bound(self) -> list[str]:
        """Coefficients that the fit drove to the end of what they may be."""
        found, lowest = [], self.points.loss.min()
        for name, value in self.fit.coefficients.items():
            constant = name in ("E", "L_inf") and value < _LEAST_CONSTANT * lowest
            exponent = name in EXPONENTS
            outside = not _LEAST_EXPONENT < abs(value) < _LARGEST_EXPONENT
            if constant or (exponent and outside):
                found.append(name)
        return found

    @property
    def largest_flops(self) -> float:
        return float(self.points.flops.max())

    def loss_at(self, params: float, tokens: float, flops: float) -> tuple[Interval, Interval]:
        """The law's loss, and a measurement of it, in the law's own conventions."""
        quantity = law_at(self.fit, self._x(params, tokens, flops))
        measured = self.spread.interval(quantity, self.level, self.noise)
        return self.value_at(params, tokens, flops), measured

    def value_at(self, params: float, tokens: float, flops: float) -> Interval:
        """The law's loss alone."""
        return self.spread.interval(law_at(self.fit, self._x(params, tokens, flops)), self.level)

    def _x(self, params: float, tokens: float, flops: float) -> Floats:
        columns = (np.array([value]) for value in (params, tokens, flops))
        (x,) = self.fit.form.logs_of(*columns)
        return np.asarray(x)

    def optimum(self, flops: float) -> tuple[Interval, Interval]:
        """The best parameters and tokens for a budget under C = 6ND, of a law that shares
        budgets (`shares_budgets`)."""

        def of(place: int) -> LogQuantity:
            def log(theta: Floats) -> Floats:
                return CHINCHILLA.log_optimum(theta, self.fit.center, flops)[..., place]

            return log

        params, tokens = (self.spread.interval(of(place), self.level) for place in (0, 1))
        return params, tokens

    @property
    def shares_budgets(self) -> bool:
        """Whether it says how a budget is shared between parameters and tokens."""
        return self.fit.form is CHINCHILLA and self.settings.count_flops == "6ND"

    def best(self, flops: float) -> tuple[float, float]:
        """The best parameters and tokens for a budget, without intervals."""
        params, tokens = np.exp(CHINCHILLA.log_optimum(self.fit.theta, self.fit.center, flops))
        return float(params), float(tokens)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write law, points and replicates; what is written as JSON."""
        compared = compare_forms(self.points, self.level, self.settings.huber)
        result = self.as_json(compared, influential(self.spread))
        (folder / LAW).write_text(json.dumps(result, indent=2, allow_nan=False), encoding="utf-8")
        (folder / POINTS).write_text(_csv(self), encoding="utf-8")
        if isinstance(self.spread, Bootstrap):
            np.save(folder / REPLICATES, self.spread.thetas)
        return result

    def as_json(self, compared: list[HeldOut], named: list[Influence]) -> dict[str, Any]:
        """Each coefficient at the top by its symbol, then how it was found."""
        found = self.fit
        own = next((one for one in compared if one.form == found.form.name), None)
        return {
            "form": found.form.name,
            "formula": found.form.formula,
            "source": found.form.source,
            **{name: value.as_json() for name, value in self.coefficients.items()},
            "level": self.level,
            "intervals": self.spread.method,
            "conventions": asdict(self.points.conventions),
            "points": len(self.points),
            "degrees_of_freedom": found.freedom,
            "objective": found.objective,
            "objective_is": "sum of half squares of log loss errors"
            if np.isinf(found.huber)
            else f"sum of Huber losses of log loss errors, threshold {found.huber:g}",
            "starts": found.starts,
            "starts_at_best": found.reached,
            "condition": found.condition,
            "at_bound": self.at_bound,
            "noise": self.noise,
            "seed_noise": self.settings.seed_noise,
            "range": {
                name: [float(column.min()), float(column.max())]
                for name in ("params", "tokens", "flops")
                for column in [getattr(self.points, name)]
            },
            "held_out": asdict(own) if own else None,
            "compared": [asdict(one) for one in compared],
            "influential": [asdict(one) for one in named],
            "settings": self.settings.model_dump(mode="json"),
            "fit": {
                "theta": found.theta.tolist(),
                "center": found.center.tolist(),
                "objective": found.objective,
                "huber": None if np.isinf(found.huber) else found.huber,
                "starts": found.starts,
                "reached": found.reached,
            },
        }


def _refuse_constant(found: Fit) -> None:
    """A law that falls nowhere is a constant, and its coefficients mean nothing.

    Raises:
        DataError: between the ends of the points no variable lowers the loss by a share of 1e-6.
    """
    form, x = found.form, found.problem.x
    at = np.tile(x.mean(axis=0), (2 * x.shape[1], 1))
    for place, column in enumerate(x.T):
        at[2 * place : 2 * place + 2, place] = column.min(), column.max()
    ends = form.log_loss(found.theta, at).reshape(-1, 2)
    if np.all(ends[:, 0] - ends[:, 1] < _FALL):
        names = " or ".join({"flops": "C", "params": "N", "tokens": "D"}[v] for v in form.variables)
        raise DataError(
            f"the loss of these points does not fall with {names}: a law of the form "
            f"{form.formula} would be a constant",
            todo="check the column of the loss and the units, or leave out runs that diverged",
        )


def write(settings: LawSettings, folder: Path) -> Mapping[str, Any]:
    """Fit a law and write it with its picture; the facts to record."""
    from bc2.scaling.picture import draw_law

    law = Law.of(settings)
    result = law.save(folder)
    draw_law(law, folder / "law")
    values = {name: coefficient.value for name, coefficient in law.coefficients.items()}
    return {
        "form": result["form"], **values, "points": result["points"],
        "conventions": str(law.points.conventions),
    }  # fmt: skip


def points_of(settings: LawSettings) -> Points:
    """The points that settings hold."""
    conventions = Conventions(settings.loss_unit, settings.count_params, settings.count_flops)
    params, tokens = np.array(settings.params), np.array(settings.tokens)
    flops, loss = np.array(settings.flops), np.array(settings.loss)
    return Points(settings.names, params, tokens, flops, loss, conventions)


def settings_of(points: Points, form: str, **others: Any) -> LawSettings:
    """Settings that hold the points.

    Raises:
        DataError: a point is there twice.
    """
    if len(set(points.names)) < len(points.names):
        twice = next(name for name in points.names if points.names.count(name) > 1)
        raise DataError(f"{twice} is there twice", todo="give each run once")
    columns: Mapping[str, Any] = {
        name: tuple(float(value) for value in getattr(points, name))
        for name in ("params", "tokens", "flops", "loss")
    }
    conventions = points.conventions
    return LawSettings(
        form=form,  # type: ignore[arg-type]
        names=points.names,
        **columns,
        loss_unit=conventions.loss,
        count_params=conventions.params,
        count_flops=conventions.flops,
        **others,
    )


def _csv(law: Law) -> str:
    """The points with what the law says of each."""
    points, unit = law.points, law.settings.loss_unit
    fitted = np.exp(law.fit.log_loss(law.fit.form.logs(points)))
    lines = [f"name,params,tokens,flops,loss_{unit},fitted,error_percent"]
    for at, name in enumerate(points.names):
        columns = (points.params[at], points.tokens[at], points.flops[at], points.loss[at])
        error = 100 * (points.loss[at] / fitted[at] - 1)
        numbers = ",".join(f"{value!r}" for value in map(float, (*columns, fitted[at], error)))
        lines.append(f"{_cell(name)},{numbers}")
    return "\n".join([*lines, ""])


def _cell(name: str) -> str:
    quoted = name.replace('"', '""')
    return f'"{quoted}"' if set(name) & set(',"\r\n') else name
