"""Anyone's table of runs as points: ``--points FILE.csv``.

Columns are found by name. Of params, tokens and flops two are needed; a table with params and
flops alone has tokens = FLOPs / 6N. The unit of the loss stands in its column's name, or is given.
"""

from __future__ import annotations

import csv
import io
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bc2.console import note, warn
from bc2.errors import DataError, UsageError, nearest
from bc2.scaling.points import (
    Conventions,
    Floats,
    LossUnit,
    ParamsConvention,
    Points,
    flops_convention,
)
from bc2.toml_file import read_source

#: Column -> unit of the loss in it; None: to be given.
LOSS_COLUMNS: dict[str, LossUnit | None] = {"loss_nats": "nats", "loss_bits": "bits", "loss": None}

#: A column that conditions may name though no table needs to have it.
RATIO = "tokens_per_param"

Row = dict[str, str]

_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|=|<|>)\s*(.+?)\s*")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """``COLUMN OP VALUE``: which rows are kept."""

    column: str
    op: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises: UsageError if it is no condition."""
        match = _CONDITION.fullmatch(text)
        if match is None:
            todo = "write it as 'tokens_per_param >= 1' or 'dataset = rw'"
            raise UsageError(f"no condition: {text!r}", where="--where", todo=todo)
        return cls(*match.groups())

    def holds(self, row: Row, where: str) -> bool:
        """Raises: DataError if numbers are compared with what is none."""
        compare, cell = _COMPARE[self.op], row[self.column]
        one, other = _as_number(cell), _as_number(self.value)
        if one is not None and other is not None:
            return compare(one, other)
        if self.op in ("=", "==", "!="):
            return compare(cell, self.value)
        raise DataError(f"{self.column} is {cell!r}, no number to compare", where=where)


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file that conditions kept."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    """Of each row, counted from 1 with the header."""
    left_out: int
    """Rows that conditions left out."""

    @classmethod
    def read(cls, path: Path, conditions: Sequence[str] = ()) -> Table:
        """Raises: DataError if it is no table; UsageError if a condition names no column."""
        parsed = [Condition.parse(text) for text in conditions]
        columns, rows, lines = _rows_of(path)
        if RATIO not in columns and {"params", "tokens"} & columns.keys():
            _add_ratio(rows)
        known = [*columns, *([RATIO] if rows and RATIO in rows[0] else [])]
        for condition in parsed:
            if condition.column not in known:
                guess = nearest(condition.column, known)
                todo = f"did you mean {guess!r}?" if guess else f"columns: {', '.join(known)}"
                raise UsageError(f"no column {condition.column!r}", where="--where", todo=todo)
        kept = [
            number
            for number, row in enumerate(rows)
            if all(one.holds(row, f"{path}:{lines[number]}") for one in parsed)
        ]
        if not kept:
            what = f"--where leaves out all {len(rows)} rows" if rows else "the table has no rows"
            raise DataError(what, where=str(path))
        return cls(
            path,
            tuple(columns),
            tuple(rows[i] for i in kept),
            tuple(lines[i] for i in kept),
            len(rows) - len(kept),
        )

    def numbers(self, column: str) -> Floats:
        """A column, [n]. Raises: DataError naming the line of what is no number above 0."""
        found = []
        for line, row in zip(self.lines, self.rows, strict=True):
            value = _as_number(row[column])
            if value is None or not 0 < value < float("inf"):
                shown = row[column] or "missing"
                what = f"{column} is {shown}, and must be a number above 0"
                raise DataError(what, where=f"{self.path}:{line}")
            found.append(value)
        return np.array(found)

    def has(self, *columns: str) -> bool:
        return all(column in self.columns for column in columns)

    def need(self, *columns: str, instead: str | None = None) -> None:
        """Raises: DataError if one is not there; it names the column that may be meant.

        Args:
            instead: a column that would do as well, to be named.
        """
        for column in columns:
            if column not in self.columns:
                guess = nearest(column, self.columns)
                todo = f"is it {guess!r}? Rename it" if guess else None
                also = f", nor {instead!r}," if instead else ""
                what = f"there is no column {column!r}{also} among {', '.join(self.columns)}"
                raise DataError(what, where=f"{self.path}:1", todo=todo)

    def names(self) -> tuple[str, ...]:
        """How each row is called: its ``name`` or ``run``, or its line.

        Repeats of a run, with other seeds, often bear one name: they get their lines.
        """
        column = next((name for name in ("name", "run") if self.has(name)), None)
        given = [row[column] if column else "" for row in self.rows]
        count = Counter(given)
        return tuple(
            f"row {line}" if not name else name if count[name] == 1 else f"{name} (row {line})"
            for name, line in zip(given, self.lines, strict=True)
        )


def read_points(
    path: Path,
    conditions: Sequence[str] = (),
    loss_unit: LossUnit | None = None,
    params: ParamsConvention = "unstated",
) -> Points:
    """The points of a table.

    Args:
        loss_unit: of a column called ``loss``.
        params: how the table counts parameters.

    Raises:
        DataError: columns or values that cannot be used, with file and line.
        UsageError: a condition or unit that makes no sense.
    """
    table = Table.read(path, conditions)
    column, unit = _loss(table, loss_unit)
    table.need("params")
    if not table.has("tokens") and not table.has("flops"):
        table.need("tokens", instead="flops")
    sizes = table.numbers("params")
    with np.errstate(over="ignore"):  # `Points` refuses what overflows.
        if table.has("tokens"):
            tokens = table.numbers("tokens")
        else:
            tokens = table.numbers("flops") / 6 / sizes
        flops = table.numbers("flops") if table.has("flops") else 6 * sizes * tokens
    conventions = Conventions(unit, params, flops_convention(sizes, tokens, flops))
    points = Points(table.names(), sizes, tokens, flops, table.numbers(column), conventions)
    _refuse_duplicates(points, table)
    _say(table, {"params", "tokens", "flops", column, "name", "run"}, conditions)
    return points


#: Columns of a table of optima: of each budget the best size and data.
OPTIMA_COLUMNS = ("flops", "params_opt", "tokens_opt")


def read_optima(path: Path, conditions: Sequence[str] = ()) -> Table | None:
    """A table of optima (`OPTIMA_COLUMNS`); None if it is one of runs.

    Raises:
        DataError: as `read_points`; also if a budget is there twice.
    """
    table = Table.read(path, conditions)
    if not table.has("params_opt"):
        return None
    table.need(*OPTIMA_COLUMNS)
    flops = table.numbers("flops")
    if len(flops) < 2:
        raise DataError("one budget gives no exponent", where=str(path), todo="give two or more")
    if len(np.unique(flops)) < len(flops):
        twice = next(value for value in flops if np.sum(flops == value) > 1)
        raise DataError(
            f"{np.sum(flops == twice)} rows have a budget of {twice:g} FLOPs",
            where=str(path),
            todo="keep one convention with --where, such as 'param_convention = Kaplan-style'",
        )
    _say(table, {*OPTIMA_COLUMNS, "name", "run"}, conditions)
    return table


def _loss(table: Table, given: LossUnit | None) -> tuple[str, LossUnit]:
    found = [column for column in LOSS_COLUMNS if table.has(column)]
    if len(found) > 1:
        todo = "keep one of them"
        raise DataError(f"two columns of losses: {', '.join(found)}", where=f"{table.path}:1",
                        todo=todo)  # fmt: skip
    if not found:
        table.need("loss_nats", instead="loss_bits")
    unit = LOSS_COLUMNS[found[0]]
    if unit is None and given is None:
        raise DataError(
            "the unit of the column 'loss' is not known",
            where=f"{table.path}:1",
            todo="give --loss-unit nats or bits, or call the column loss_nats or loss_bits",
        )
    if unit is not None and given is not None and unit != given:
        raise UsageError(f"--loss-unit {given}, but the column is called {found[0]}")
    return found[0], unit or given or "nats"


def _rows_of(path: Path) -> tuple[dict[str, int], list[Row], list[int]]:
    try:
        text = read_source(path).decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""))
        header = [cell.strip() for cell in next(reader, [])]
        cells = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise DataError(f"not a CSV file: {error}", where=str(path)) from None
    if not any(header):
        raise DataError("the table is empty", where=str(path))
    if len(header) == 1:
        _refuse_separator(header[0], path)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"the column {doubled[0]!r} is there twice", where=f"{path}:1")
    rows = []
    for line, row in cells:
        if len(row) != len(header):
            what = f"{len(row)} cells, and the header has {len(header)} columns"
            raise DataError(what, where=f"{path}:{line}")
        rows.append(dict(zip(header, map(str.strip, row), strict=True)))
    return {name: at for at, name in enumerate(header)}, rows, [line for line, _ in cells]


def _refuse_separator(header: str, path: Path) -> None:
    """Of a header that is one column: whether another sign than a comma parts it."""
    for sign, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if sign in header:
            raise DataError(
                f"the columns are separated by {name}",
                where=f"{path}:1",
                todo="separate them by commas, and write 0.5 and not 0,5",
            )


def _add_ratio(rows: list[Row]) -> None:
    """tokens_per_param, where the row has numbers that give it."""
    for row in rows:
        params, tokens, flops = (_as_number(row.get(c, "")) for c in ("params", "tokens", "flops"))
        if tokens is None and flops is not None and params:
            tokens = flops / 6 / params
        row[RATIO] = repr(tokens / params) if tokens is not None and params else "nan"


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _refuse_duplicates(points: Points, table: Table) -> None:
    """The same run twice would count twice. Repeats with other seeds have other losses."""
    seen: dict[tuple[float, ...], int] = {}
    rows = zip(points.params, points.tokens, points.flops, points.loss, strict=True)
    for at, row in enumerate(rows):
        if row in seen:
            raise DataError(
                f"the run of line {table.lines[at]} is also that of line {table.lines[seen[row]]}",
                where=str(table.path),
                todo="remove one of them; a repeat with another seed has another loss",
            )
        seen[row] = at


def _say(table: Table, used: set[str], conditions: Sequence[str]) -> None:
    if conditions:
        kept, all_ = len(table.rows), len(table.rows) + table.left_out
        note(f"{table.left_out} of {all_} rows are left out by --where, {kept} are kept")
    named = {Condition.parse(text).column for text in conditions}
    others = [column for column in table.columns if column not in used | named | {RATIO, ""}]
    if others:
        warn(f"columns that are not read: {', '.join(others)}")
