"""Measured values as a person reads them."""

from __future__ import annotations

import time
from typing import Any

from bc2.train.speed.mfu import mfu_text

NOTHING = "-"


def amount(value: float | None) -> str:
    """1,234,567 as 1.23M; small numbers in full."""
    if value is None:
        return NOTHING
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.2f}{letter}"
    return f"{value:,.0f}"


def decimals(value: Any, digits: int = 4) -> str:
    """A loss or norm; what is not a number (a bad step's ``nan``) as it stands."""
    if isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return NOTHING if value is None else str(value)


def figure(value: Any) -> str:
    """A measured number of any size: four decimals where they tell it."""
    if isinstance(value, int | float) and value and not 5e-5 <= abs(value) < 1e6:
        return f"{value:.3e}"
    return decimals(value)


def rate(value: Any) -> str:
    """A learning rate."""
    return f"{value:.2e}" if isinstance(value, int | float) else NOTHING


def percent(share: float | None, digits: int = 0) -> str:
    return NOTHING if share is None else f"{100 * share:.{digits}f}%"


def mfu(share: float | None, digits: int = 0) -> str:
    """A share of the peak, with the words that it cannot be if it is above 100%."""
    return NOTHING if share is None else mfu_text(share, digits)


def duration(seconds: float | None) -> str:
    """3 d 04:05:06, 04:05:06 or 12.3 s."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def moment(seconds: float) -> str:
    """A wall-clock time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
