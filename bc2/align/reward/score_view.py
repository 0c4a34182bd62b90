"""The figures of scores as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from bc2.align.pairs.preference_rows import COLUMNS, accuracy_rows


def score_view(figures: Mapping[str, Any]) -> RenderableType:
    """What `bc2.align.reward.score_figures` says."""
    parts: list[RenderableType] = [_models(figures)]
    for name, model in figures["models"].items():
        if model["preference"] is not None:
            parts.append(_preference(name, model["preference"]))
    if figures["agreement"]:
        parts.append(_agreement(figures["agreement"]))
    return Group(*parts)


def _models(figures: Mapping[str, Any]) -> Group:
    left = ", ".join(f"{count:,} {code}" for code, count in figures["left_out"].items())
    pairs = "" if figures["pairs"] is None else f", {figures['pairs']:,} pairs"
    title = f"{figures['data']}: {figures['answers']:,} answers{pairs}"
    headings = ("mean score", "sd", "lowest", "highest", "held-out mean", "held-out sd")
    table = _table(*headings)
    for name, model in figures["models"].items():
        keys = ("mean", "sd", "lowest", "highest", "centre", "scale")
        table.add_row(name, *(_number(model[key]) for key in keys))
    return Group(f"{title}; left out: {left}" if left else title, table)


def _agreement(rows: list[Mapping[str, Any]]) -> Group:
    table = _table("Kendall's τ", "pairs ordered alike")
    for row in rows:
        alike = row["pairs_alike"]
        share = "-" if alike is None else f"{alike:.1%}"
        table.add_row(" and ".join(row["models"]), _number(row["kendall_tau"]), share)
    return Group("agreement", table)


def _preference(name: str, found: Mapping[str, Any]) -> Group:
    table = _table(*COLUMNS[1:])
    for row in accuracy_rows(found):
        table.add_row(*row)
    return Group(f"pairs in order by {name}", table)


def _table(*headings: str) -> Table:
    table = Table("", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
