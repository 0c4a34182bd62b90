"""What `preference_tables` says as rows of text, for terminals and pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

#: The fact of a checkpoint that has the tables.
PREFERENCE = "preference"

#: Of the rows of `accuracy_rows`.
COLUMNS = ("pairs of", "pairs", "prompts", "in order", "95%", "longer wins", "above it", "95%")

_NOTHING = "-"


def accuracy_text(found: Mapping[str, Any]) -> str:
    """The share of pairs in order, with its interval, in one line."""
    bounds = "" if found["interval"] is None else f" ({_interval(found['interval'])})"
    return f"{_share(found['accuracy'])}{bounds} of {found['pairs']:,} pairs in order"


def accuracy_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By `COLUMNS`: all pairs, by gap in percent of the range of the data's scores, by source where
    there are several, balanced by length."""
    yield _row("all", found)
    for gap in found["by_gap"]:
        edges = f"{100 * gap['low']:.0f} to {100 * gap['high']:.0f}%"
        yield _row(f"gap {edges}", gap)
    for source in found["by_source"] if len(found["by_source"]) > 1 else ():
        yield _row(source["source"], source)
    balanced = found["length_balanced"]
    if balanced is not None:
        share, bounds = _share(balanced["accuracy"]), _interval(balanced["interval"])
        rest = (_share(0.5), _points(balanced["accuracy"] - 0.5), _NOTHING)
        yield ("balanced by length", f"{balanced['pairs']:,}", _NOTHING, share, bounds, *rest)


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{row['pairs']:,}",
        f"{row['prompts']:,}",
        _share(row["accuracy"]),
        _interval(row["interval"]),
        _share(row["longer_wins"]),
        _points(row["above_length"]),
        _interval(row["above_length_interval"], _points),
    )


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"


def _points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _NOTHING if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _interval(bounds: Sequence[float] | None, each: Any = _share) -> str:
    return _NOTHING if bounds is None else " to ".join(map(each, bounds))
