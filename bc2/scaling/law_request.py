"""What a person asked `bc2 fit-scaling-law` for: a law, and questions to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from bc2.console import note
from bc2.errors import UsageError, nearest
from bc2.files import make_directory
from bc2.pipeline.session import Session
from bc2.recipe import Recipe, load
from bc2.registry import Artifact, Registry
from bc2.registry.draft import SHORT
from bc2.scaling.compare import choose_form
from bc2.scaling.decide import (
    VOCAB_SIZE,
    Allocation,
    Prediction,
    allocate,
    check_budget,
    check_prediction,
    predict,
    tokens_of,
    warn_of_other_text,
)
from bc2.scaling.isoflop_law import NAME as ISOFLOP
from bc2.scaling.law import LAW, Law, settings_of
from bc2.scaling.law_config import LawSettings
from bc2.scaling.picture import Target, draw_law
from bc2.scaling.points import FlopsConvention, LossUnit, ParamsConvention, Points
from bc2.scaling.points_file import Table, read_optima, read_points
from bc2.scaling.runs import points_of_runs, select_runs

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class LawRequest:
    """Which points, and which law of them."""

    runs: tuple[str, ...] = ()
    points: Path | None = None
    where: tuple[str, ...] = ()
    loss_unit: str | None = None
    count_params: str | None = None
    count_flops: str | None = None
    form: str | None = None
    mix: bool = False
    huber: float | None = None
    level: float | None = None
    replicates: int | None = None
    """These three None: as `LawSettings` has them."""
    name: str | None = None

    def obtain(
        self, registry: Registry, questions: Questions, *, fresh: bool = False
    ) -> tuple[Artifact, bool]:
        """The law, found or fitted and registered; and whether it was fitted now.

        Args:
            questions: what it is to be asked: one that it cannot answer is refused before the
                fit, which may take long.

        Raises:
            UsageError, DataError, RefError: options, points or runs that make no law.
        """
        self._check()
        if self.points is not None:
            settings, parents, default = *self._of_table(self.points), _as_name(self.points.stem)
        else:
            settings, parents, default = self._of_runs(registry)
        questions.check(settings)
        session = Session(registry, fresh=fresh)
        made = session.obtain_recorded(
            "law", self.name or default, settings, {"checkpoint": parents}
        )
        return made, made in session.built

    def _check(self) -> None:
        _one_of(self.loss_unit, get_args(LossUnit), "--loss-unit")
        _one_of(self.count_params, ("non-embedding", "total"), "--count-params")
        _one_of(self.count_flops, get_args(FlopsConvention), "--count-flops")
        if self.level is not None and not 0 < self.level < 1:
            raise UsageError(f"--level {self.level:g} is no share", todo="e.g. 0.8")
        if self.replicates is not None and self.replicates < 50:
            raise UsageError(f"--replicates {self.replicates} are too few", todo="give 50 or more")
        if self.huber is not None and not 0 < self.huber < float("inf"):
            raise UsageError(f"--huber {self.huber:g} is not above 0 and finite", todo="e.g. 0.001")
        if self.points is not None and self.runs:
            raise UsageError("--points and --runs exclude each other", todo="give one of them")
        table_alone = {"--where": self.where, "--loss-unit": self.loss_unit}
        for option, value in table_alone.items():
            if value and self.points is None:
                raise UsageError(f"{option} is about a table", todo="give --points FILE.csv")
        if self.mix and self.points is not None:
            raise UsageError(
                "--mix is about runs: of a table nothing is known", todo="leave it out"
            )
        if self.count_flops is not None and self.points is not None:
            raise UsageError(
                "--count-flops is about runs: a table has its FLOPs", todo="leave it out"
            )

    @property
    def _others(self) -> dict[str, Any]:
        given = {"huber": self.huber, "level": self.level, "replicates": self.replicates}
        return {name: value for name, value in given.items() if value is not None}

    def _of_table(self, path: Path) -> tuple[LawSettings, list[Artifact]]:
        count: ParamsConvention = self.count_params or "unstated"  # type: ignore[assignment]
        optima = read_optima(path, self.where) if self.form in (None, ISOFLOP) else None
        if optima is not None:
            note("the table has optima of budgets: their growth with compute is fitted")
            return self._of_optima(optima, count), []
        unit: LossUnit | None = self.loss_unit  # type: ignore[assignment]
        points = read_points(path, self.where, unit, count)
        return settings_of(points, self._form(points), **self._others), []

    def _of_optima(self, table: Table, count: ParamsConvention) -> LawSettings:
        params, tokens, flops = (
            tuple(map(float, table.numbers(column)))
            for column in ("params_opt", "tokens_opt", "flops")
        )
        return LawSettings(
            form="isoflop", optima=True, names=table.names(), params=params, tokens=tokens,
            flops=flops, loss=(), loss_unit="nats", count_params=count, count_flops="counted",
            **self._others,
        )  # fmt: skip

    def _of_runs(self, registry: Registry) -> tuple[LawSettings, list[Artifact], str]:
        found = select_runs(registry, self.runs)
        params: ParamsConvention = self.count_params or "non-embedding"  # type: ignore[assignment]
        flops: FlopsConvention = self.count_flops or "6ND"  # type: ignore[assignment]
        ladder = points_of_runs(registry, found, params, flops, mix=self.mix)
        settings = settings_of(
            ladder.points, self._form(ladder.points), seed_noise=ladder.seed_noise, **self._others
        )
        common = set.intersection(*(set(one.tags) for one in found))
        return settings, found, min(common, default="law")

    def _form(self, points: Points) -> str:
        if self.form == ISOFLOP:
            return ISOFLOP
        return choose_form(self.form, points).name


def _one_of(value: str | None, known: Sequence[str], option: str) -> None:
    if value is None or value in known:
        return
    guess = nearest(value, known)
    todo = f"did you mean {guess!r}?" if guess else f"give {' or '.join(known)}"
    raise UsageError(f"{option} {value!r} is not known", todo=todo)


def _as_name(text: str) -> str:
    """A file's name as that of an artifact."""
    return _NOT_IN_A_NAME.sub("-", text).strip("-._") or "law"


@dataclass(frozen=True)
class Questions:
    """What a law is asked."""

    predict: str | None = None
    """A recipe."""
    overrides: tuple[str, ...] = ()
    budget: float | None = None
    """FLOPs."""
    vocab_size: int | None = None
    """Of the shape for a budget; None: Baichuan 2's."""
    plan: Callable[[Any], dict[str, Any]] | None = None
    """Recipe -> what it takes on given devices, as `bc2 plan` has it."""

    @property
    def any(self) -> bool:
        return self.predict is not None or self.budget is not None

    @cached_property
    def recipe(self) -> Recipe:
        """What is to be predicted."""
        assert self.predict is not None
        return load(self.predict, self.overrides)

    @cached_property
    def planned(self) -> dict[str, Any] | None:
        return self.plan(self.recipe) if self.plan else None

    def check(self, settings: LawSettings | None = None) -> None:
        """Find what is wrong with the questions without a fit.

        Args:
            settings: of the law; None: what is wrong whatever the law.

        Raises:
            UsageError, RecipeError: they make no sense, or such a law cannot answer them.
        """
        if self.predict is not None:
            tokens_of(self.recipe)
            _ = self.planned
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UsageError(f"--vocab-size {self.vocab_size} is too small", todo="e.g. 125696")
        if settings is None:
            return
        if self.predict is not None:
            check_prediction(settings)
        if self.budget is not None:
            check_budget(settings, self.budget)


@dataclass(frozen=True)
class Answers:
    """What it answered, with the pictures that show it."""

    prediction: Prediction | None = None
    plan: dict[str, Any] | None = None
    allocation: Allocation | None = None
    pictures: tuple[Path, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "prediction": self.prediction.as_json() if self.prediction else None,
            "plan": self.plan,
            "budget": self.allocation.as_json() if self.allocation else None,
            "pictures": [str(path) for path in self.pictures],
        }


def ask(registry: Registry, artifact: Artifact, questions: Questions) -> Answers:
    """Put the questions to a registered law.

    Raises:
        UsageError, RecipeError: the law cannot answer, or the recipe is wrong.
    """
    if not questions.any:
        return Answers()
    law = Law.load(artifact)
    prediction = allocation = plan = None
    targets = []
    if questions.predict is not None:
        recipe, plan = questions.recipe, questions.planned
        if artifact.parents:
            warn_of_other_text(registry, registry.parents(artifact), recipe)
        prediction = predict(law, recipe)
        targets.append(
            Target(prediction.target, prediction.params, prediction.tokens, prediction.flops,
                   prediction.loss)
        )  # fmt: skip
    if questions.budget is not None:
        allocation = allocate(law, questions.budget, questions.vocab_size or VOCAB_SIZE)
        name = f"budget-{questions.budget:.3g}"
        targets.append(
            Target(name, allocation.params.value, allocation.tokens.value, allocation.flops,
                   allocation.loss)
        )  # fmt: skip
    folder = registry.home / "laws" / f"{artifact.name}-{artifact.digest[:SHORT]}"
    make_directory(folder)
    path = folder / _as_name("-".join(target.name for target in targets))
    return Answers(prediction, plan, allocation, tuple(draw_law(law, path, targets)))


def read_law(artifact: Artifact) -> dict[str, Any]:
    """What ``law.json`` of a registered law says."""
    found: dict[str, Any] = json.loads(artifact.file(LAW).read_text())
    return found
