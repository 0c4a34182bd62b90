"""An IsoFLOP law as an artifact: optima of budgets, N_opt = G_N C^a and D_opt = G_D C^b, and the
parametric optimum beside them where the points determine one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bc2.scaling.compare import undetermined
from bc2.scaling.fit import fit
from bc2.scaling.forms.chinchilla import CHINCHILLA
from bc2.scaling.isoflop import Growth, Optima, find_optima, growth
from bc2.scaling.isoflop_picture import draw_optima
from bc2.scaling.law import LAW, points_of
from bc2.scaling.law_config import LawSettings
from bc2.scaling.points import Conventions, Floats

NAME = "isoflop"

SOURCE = (
    "Hoffmann et al. 2022, approach 2 (arXiv 2203.15556), by interpolation as Porian et al. 2024"
)


def write(settings: LawSettings, folder: Path) -> Mapping[str, Any]:
    """Find the optima, write them with a picture; the facts to record."""
    optima, parametric = _optima_of(settings)
    params = growth(optima.flops, optima.params, settings.level)
    tokens = growth(optima.flops, optima.tokens, settings.level)
    result = _as_json(settings, optima, parametric, params, tokens)
    (folder / LAW).write_text(json.dumps(result, indent=2, allow_nan=False), encoding="utf-8")
    (folder / "optima.csv").write_text(_csv(result["optima"]), encoding="utf-8")
    points = None if settings.optima else points_of(settings)
    draw_optima(optima, params, points, result["conventions_text"], folder / "law")
    return {
        "form": NAME, "a": params.exponent.value, "b": tokens.exponent.value,
        "budgets": len(optima.flops), "conventions": result["conventions_text"],
    }  # fmt: skip


def _optima_of(settings: LawSettings) -> tuple[Optima, Floats | None]:
    """The optima, and at the same budgets those of Chinchilla's form, if it is determined."""
    if settings.optima:
        flops, params, tokens = map(np.array, (settings.flops, settings.params, settings.tokens))
        return Optima(flops, params, tokens), None
    points = points_of(settings)
    optima = find_optima(points)
    if undetermined(CHINCHILLA, points) is not None:
        return optima, None
    found = fit(CHINCHILLA, points, settings.huber)
    return optima, np.exp(CHINCHILLA.log_optimum(found.theta, found.center, optima.flops)[:, 0])


def _as_json(
    settings: LawSettings, optima: Optima, parametric: Floats | None, params: Growth, tokens: Growth
) -> dict[str, Any]:
    conventions = Conventions(settings.loss_unit, settings.count_params, settings.count_flops)
    columns: dict[str, Any] = {
        "flops": optima.flops, "params": optima.params, "tokens": optima.tokens,
        "loss": optima.loss, "params_parabola": optima.parabola,
        "params_parametric": parametric,
    }  # fmt: skip
    present = {name: column for name, column in columns.items() if column is not None}
    rows = [
        {name: _finite(column[at]) for name, column in present.items()}
        for at in range(len(optima.flops))
    ]
    return {
        "form": NAME,
        "formula": "N_opt = G_N C^a, D_opt = G_D C^b",
        "source": SOURCE,
        "a": params.exponent.as_json(),
        "b": tokens.exponent.as_json(),
        "G_N": params.scale_interval.as_json(),
        "G_D": tokens.scale_interval.as_json(),
        "level": settings.level,
        "intervals": "line through logarithms, Student's t",
        "conventions": asdict(conventions),
        "conventions_text": _conventions(settings, conventions),
        "points": len(settings.names),
        "optima": rows,
        "budgets_left_out": list(optima.left_out),
        "settings": settings.model_dump(mode="json"),
    }


def _conventions(settings: LawSettings, conventions: Conventions) -> str:
    """Of optima without the loss, which they do not have."""
    text = str(conventions)
    return text.split("; ", 1)[1] if settings.optima else text


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
