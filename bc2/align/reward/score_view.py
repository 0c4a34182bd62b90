"""The figures of scores as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table


def score_view(figures: Mapping[str, Any]) -> RenderableType:
    """What `bc2.align.reward.score_figures` says."""
    parts: list[RenderableType] = [_models(figures)]
    for name, model in figures["models"].items():
        if model["preference"] is not None:
            parts.append(_preference(name, model["preference"]))
    if figures["agreement"]:
        parts.append(_agreement(figures["agreement"]))
    return Group(*parts)


def _models(figures: Mapping[str, Any]) -> Table:
    left = ", ".join(f"{count:,} {code}" for code, count in figures["left_out"].items())
    pairs = "" if figures["pairs"] is None else f", {figures['pairs']:,} pairs"
    title = f"{figures['data']}: {figures['answers']:,} answers{pairs}"
    table = _table(f"{title}; left out: {left}" if left else title)
    for heading in ("mean score", "sd", "lowest", "highest", "held-out mean", "held-out sd"):
        table.add_column(heading, justify="right")
    for name, model in figures["models"].items():
        keys = ("mean", "sd", "lowest", "highest", "centre", "scale")
        table.add_row(name, *(_number(model[key]) for key in keys))
    return table


def _agreement(rows: list[Mapping[str, Any]]) -> Table:
    table = _table("agreement")
    table.add_column("Kendall's τ", justify="right")
    table.add_column("pairs ordered alike", justify="right")
    for row in rows:
        alike = row["pairs_alike"]
        share = "-" if alike is None else f"{alike:.1%}"
        table.add_row(" and ".join(row["models"]), _number(row["kendall_tau"]), share)
    return table


def _preference(name: str, found: Mapping[str, Any]) -> Table:
    table = _table(f"pairs in order by {name}")
    table.add_column("pairs", justify="right")
    table.add_column("in order", justify="right")
    table.add_row("all", f"{found['pairs']:,}", f"{found['accuracy']:.1%}")
    return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
