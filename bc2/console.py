"""What a person or a pipeline sees.

stdout carries the result alone: a short table, one JSON object (`--json`), or
only the refs (`--quiet`). Progress, notes and warnings go to stderr. Neither stream raises where
it cannot be written, see `bc2.process.standard_streams`. rich is imported only when something is
drawn with it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from bc2.errors import RunFailed
from bc2.process.standard_streams import forgive_lost_output, lost_output, reader_gone
from bc2.ranks import first

Format = Literal["table", "json", "quiet"]

#: Control characters, which a terminal obeys, as they are shown; not tab and line end.
_SPELLED = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}


class ReaderGone(Exception):
    """Whoever reads stdout has gone away (`| head`)."""


class OutputLost(RunFailed):
    """The result, which is all that a command is for, could not be written (exit 1)."""

    def __init__(self, failure: OSError):
        super().__init__(
            f"the result could not be written: {_reason(failure)}",
            where="stdout",
            todo="run the same again with stdout where there is room for it",
        )


def _reason(failure: OSError) -> str:
    return (failure.strerror or str(failure)).lower()


def check_output() -> None:
    """Find out whether what was printed on stdout so far has got there.

    Raises:
        ReaderGone: whoever read it has gone away.
        OutputLost: it could not be written.
    """
    failure = lost_output()
    if failure is not None:
        raise ReaderGone if reader_gone(failure) else OutputLost(failure)


def spelled_out(text: str) -> str:
    """A text with its control characters spelled out, but for tabs and line ends."""
    return text.translate(_SPELLED)


def printable(text: str) -> str:
    """A text that may hold strangers' words, for a terminal: control characters are spelled out.

    A line after the first is set in, so that none can pass for a message of its own.
    """
    lines = spelled_out(text).split("\n")
    return "\n".join([lines[0], *(line if line[:1] == " " else f"  {line}" for line in lines[1:])])


def note(message: str, *, every_rank: bool = False) -> None:
    """One line on stderr for a person: what is happening, or what was chosen.

    Of a run's ranks the first one speaks, unless it is about `every_rank`.
    """
    # Without `standard_streams.install`, as in a worker, a stream may be None or raise.
    if (every_rank or first()) and sys.stderr is not None:
        with suppress(OSError):
            print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """One line on stderr that something needs attention."""
    note(f"warning: {printable(message)}")


@dataclass(frozen=True)
class Output:
    """How a command renders its result on stdout."""

    format: Format = "table"

    @classmethod
    def of(cls, *, json: bool, quiet: bool = False) -> Output:
        return cls("json" if json else "quiet" if quiet else "table")

    def emit(
        self, value: Any, *, table: Any = None, quiet: Sequence[str] = (), kept: bool = False
    ) -> None:
        """Print one result.

        What cannot be written is an error in the end, if nothing else is (`check_output`).

        Args:
            value: the result as JSON data (``--json``).
            table: a rich renderable or a string for people; the JSON if None.
            quiet: lines for ``--quiet``, refs as a rule.
            kept: whether the work is done and kept, printed or not: an artifact, a file. Then a
                warning says that its result could not be written.
        """
        if not first():
            return
        self._print(value, table, quiet)
        failure = lost_output()
        if kept and failure is not None:
            forgive_lost_output()
            if not reader_gone(failure):
                warn(f"the work is done, but its result could not be written: {_reason(failure)}")

    def _print(self, value: Any, table: Any, quiet: Sequence[str]) -> None:
        if self.format == "quiet":
            for line in quiet:
                print(line)
        elif self.format == "json" or table is None:
            print(_json(value, indent=2))
        elif isinstance(table, str):
            print(table)
        else:
            _draw(table)


def emit_line(value: Any) -> None:
    """Print a result, one of many, as a line of JSON that a reader has at once.

    Raises:
        ReaderGone, OutputLost: see `check_output`.
    """
    print(_json(value), flush=True)
    check_output()


def _json(value: Any, indent: int | None = None) -> str:
    """JSON that stdout can encode: what it lacks is escaped, so that nothing is lost."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=indent, default=str)
    return text


#: Columns of what is no terminal: no digest or path is folded for it.
_WIDE = 1000


def _draw(table: Any) -> None:
    from rich.console import Console

    if sys.stdout.isatty():
        Console().print(table)
        return
    text = _plain(table)
    if text is None:
        console = Console(width=_WIDE)
        with console.capture() as captured:
            console.print(table)
        text = captured.get()
    # A pipe has no width: nothing is padded for it.
    print("\n".join(line.rstrip() for line in text.rstrip().splitlines()))


def _plain(drawn: Any) -> str | None:
    """What rich makes of a `table` without a terminal, where it is plain; else None.

    rich takes half a millisecond a row: too long for a listing of all artifacts.
    """
    from rich.cells import cell_len
    from rich.table import Table

    if not isinstance(drawn, Table) or drawn.box is not None or drawn.title is not None:
        return None
    columns = [
        [*([str(column.header)] if drawn.show_header else []), *map(str, column.cells)]
        for column in drawn.columns
    ]
    widths = [max(map(cell_len, cells), default=0) for cells in columns]
    plain = all(cell.isprintable() for cells in columns for cell in cells)
    marked = any("[" in str(column.header) for column in drawn.columns)
    if not plain or marked or 0 in widths or sum(widths) + 2 * len(widths) > _WIDE:
        return None
    rights = [column.justify == "right" for column in drawn.columns]
    lines = []
    for row in zip(*columns, strict=True):
        fields = []
        for cell, width, right in zip(row, widths, rights, strict=True):
            space = " " * (width - cell_len(cell))
            fields.append(space + cell if right else cell + space)
        lines.append("  ".join(fields))
    return "\n".join(lines)


def show_on_stderr(drawn: Any) -> None:
    """Something drawn with rich, for a person. Of a run's ranks the first one speaks."""
    from rich.console import Console

    # A file has no width, as a pipe: see `_draw`.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 1000)
    with console.capture() as captured:
        console.print(drawn)
    note("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None
) -> Any:
    """A plain rich table; numbers are right-aligned."""
    from rich.table import Table
    from rich.text import Text

    header = any(columns)
    drawn = Table(title=title, box=None, pad_edge=False, title_justify="left", show_header=header)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in rows) and bool(rows)
        # The first column holds what one copies, a ref as a rule: never folded.
        drawn.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=index == 0
        )
    for row in rows:
        # As text: a path or a message may look like rich's markup.
        drawn.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row))
    return drawn


class Progress(Protocol):
    """Advance a bar; `detail` replaces the text at its end."""

    def __call__(self, advance: float, detail: str = "") -> None: ...


@contextmanager
def progress(title: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    """A rich bar on a terminal; elsewhere one plain line every ten seconds."""
    if not first():
        yield lambda advance, detail="": None
    elif sys.stderr.isatty():
        with _bar(title, total) as step:
            yield step
    else:
        yield _lines(title, total, unit)


#: The bars that are up, where there are any.
_board: list[Any] = []


@contextmanager
def board() -> Iterator[Callable[[Any], None]]:
    """A drawing that stays on the terminal, replaced by each call, with the bars below it.

    Where stderr is no terminal, nothing is drawn.
    """
    if not (first() and sys.stderr.isatty()):
        yield lambda drawn: None
        return
    from rich.console import Group
    from rich.live import Live

    bars = _bars()
    with Live(bars, console=bars.console) as live:
        _board.append(bars)
        try:
            yield lambda drawn: live.update(Group(drawn, bars), refresh=True)
        finally:
            _board.remove(bars)


@contextmanager
def _bar(title: str, total: float | None) -> Iterator[Progress]:
    if _board:
        bars = _board[-1]
        task = bars.add_task(title, total=total, detail="")
        try:
            yield _advance(bars, task)
        finally:
            bars.remove_task(task)
        return
    bars = _bars()
    with bars:
        # One that begins meanwhile is drawn below: a terminal has one drawing at a time.
        _board.append(bars)
        try:
            yield _advance(bars, bars.add_task(title, total=total, detail=""))
        finally:
            _board.remove(bars)


def _advance(bars: Any, task: Any) -> Progress:
    def step(advance: float, detail: str = "") -> None:
        bars.update(task, advance=advance, detail=detail)

    return step


def _bars() -> Any:
    """rich's progress bars, not yet shown."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=Console(stderr=True),
    )


def _lines(title: str, total: float | None, unit: str, interval_s: float = 10.0) -> Progress:
    done = 0.0
    last = time.monotonic()

    def step(advance: float, detail: str = "") -> None:
        nonlocal done, last
        done += advance
        now = time.monotonic()
        if now - last >= interval_s:
            last = now
            of = f"/{total:,.0f}" if total else ""
            note(f"{title}: {done:,.0f}{of} {unit} {detail}".rstrip())

    return step
