"""What a person asked `bc2 fit-scaling-law` for: a law, and questions to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from bc2.console import note
from bc2.errors import UsageError, nearest
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.scaling.compare import choose_form
from bc2.scaling.isoflop_law import NAME as ISOFLOP
from bc2.scaling.law import settings_of
from bc2.scaling.law_config import LawSettings
from bc2.scaling.points import FlopsConvention, LossUnit, ParamsConvention, Points
from bc2.scaling.points_file import Table, read_optima, read_points
from bc2.scaling.questions import Questions, as_name
from bc2.scaling.runs import points_of_runs, select_runs


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
            settings, parents, default = *self._of_table(self.points), as_name(self.points.stem)
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
        if self.count_flops is None and self._form(ladder.points) == "power":
            # A law in compute alone: of small models the head, which 6ND leaves out, is most of it.
            ladder = points_of_runs(registry, found, params, "counted", mix=self.mix)
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
