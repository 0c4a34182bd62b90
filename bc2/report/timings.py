"""How long the work on a corpus took, step by step, as the registry recorded it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bc2.report.funnel_rows import share
from bc2.report.number_format import NOTHING
from bc2.report.visible_text import size

TITLE = "Seconds of work"
COLUMNS = ("step", "bytes in", "seconds", "settling", "of all", "MB/s")


class Timing(NamedTuple):
    """One step: reading, a stage, what lies between stages, writing."""

    step: str
    bytes: int | None
    """UTF-8 bytes of text that came in; None where that says nothing."""
    seconds: float
    """Of all workers together."""
    settling: float
    """Of them, those of looking at the whole corpus; settling itself as the clock has it."""

    @property
    def rate(self) -> float | None:
        """Megabytes of text a second of work: what one core does."""
        return self.bytes / 1e6 / self.seconds if self.bytes and self.seconds else None

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "mb_per_second": self.rate}


def timings(rows: Iterable[Mapping[str, Any]]) -> list[Timing]:
    """Steps from the ``timings`` that `bc2.data.prep.step_timings` makes."""
    return [
        Timing(row["step"], row["bytes"], float(row["seconds"]), float(row["settling"]))
        for row in rows
    ]


def lines(found: Sequence[Timing]) -> list[list[object]]:
    """Cells of a table with `COLUMNS`, all steps together at its end."""
    if not found:
        return []
    seconds, settling = sum(one.seconds for one in found), sum(one.settling for one in found)
    whole = Timing("in all", found[0].bytes, seconds, settling)
    return [_line(one, whole) for one in [*found, whole]]


def _line(one: Timing, whole: Timing) -> list[object]:
    part = share(round(1000 * one.seconds), round(1000 * whole.seconds))
    return [
        one.step,
        f"{NOTHING if one.bytes is None else size(one.bytes):>10}",
        f"{one.seconds:>10,.1f}",
        f"{f'{one.settling:,.1f}' if one.settling else NOTHING:>8}",
        f"{NOTHING if part is None else f'{part:.1%}':>6}",
        f"{NOTHING if one.rate is None else f'{one.rate:,.1f}':>8}",
    ]
