"""Answers as they are given, on disk: what an interrupted evaluation goes on from.

Work is divided into units, runs of samples of one task. A unit to score is written when all of it
is answered, so that a unit is always computed in one go and its numbers do not depend on where the
work was interrupted; generated answers, which depend on their prompts alone, are written one by
one. Ranks take units that no other rank has taken; they share nothing but this folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bc2.evaluate.prompts import GROUP, TaskPrompts
from bc2.evaluate.samples import Answer
from bc2.files import make_directory, replace_durably

#: Samples of a unit that is generated: few, so that ranks end together.
_GENERATED = 16


@dataclass(frozen=True)
class Unit:
    """A run of samples of one task, answered by one rank."""

    task: str
    first: int
    last: int
    """Before which it ends."""

    @property
    def name(self) -> str:
        return f"{quote(self.task, safe='')}-{self.first:07d}"


def units_of(prompts: TaskPrompts) -> Iterator[Unit]:
    """The units of a task, in order; none crosses a group of stored prompts."""
    size = _GENERATED if prompts.kind == "generate" else GROUP
    for first in range(0, prompts.samples, size):
        yield Unit(prompts.task, first, min(first + size, prompts.samples))


@dataclass(frozen=True)
class Answered:
    """The answers to one sample."""

    doc_id: int
    answers: tuple[Answer, ...]


class AnswerJournal:
    """The answers of an evaluation.

    Args:
        folder: where they are; it is made if it is not there.
        claims: name of the folder in which the ranks of one start mark the units they take.
    """

    def __init__(self, folder: Path, claims: str):
        self.folder = folder / "answers"
        self._claims = folder / claims
        make_directory(self.folder)
        make_directory(self._claims)

    def claim(self, unit: Unit) -> bool:
        """Take a unit; False if a rank of this start has taken it."""
        try:
            os.close(os.open(self._claims / unit.name, os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            return False
        return True

    def read(self, unit: Unit) -> dict[int, Answered]:
        """The answers to a unit so far, by row. A line that was being written is none."""
        found: dict[int, Answered] = {}
        try:
            lines = self._path(unit).read_bytes().split(b"\n")
        except FileNotFoundError:
            return found
        for line in lines[:-1]:  # what follows the last line break is incomplete
            answered = _parse(line)
            if answered is not None:
                found[answered.doc_id] = answered
        return found

    def is_done(self, unit: Unit) -> bool:
        """Whether every sample of a unit is answered."""
        return len(self.read(unit)) == unit.last - unit.first

    def write(self, unit: Unit, answered: Sequence[Answered]) -> None:
        """Write all answers to a unit."""
        replace_durably(self._path(unit), b"".join(map(_line, answered)))

    @contextmanager
    def appending(self, unit: Unit) -> Iterator[Callable[[Answered], None]]:
        """Append answers one by one: the block is given a function that takes them.

        Raises:
            OSError: the disk is full, or fails.
        """
        path = self._path(unit)
        # A line that was being written must not be continued.
        ended = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        with path.open("ab", buffering=0) as stream:
            if not ended:
                _write_all(stream, b"\n")
            yield lambda answered: _write_all(stream, _line(answered))

    def _path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.name}.jsonl"


def _write_all(stream: FileIO, data: bytes) -> None:
    """Write all bytes, in one piece if the disk has room for them."""
    while data:
        data = data[stream.write(data) :]


def _line(answered: Answered) -> bytes:
    answers = [_compact(answer) for answer in answered.answers]
    return json.dumps({"doc_id": answered.doc_id, "answers": answers}).encode() + b"\n"


def _compact(answer: Answer) -> dict[str, Any]:
    """Without what has its default: most answers are a number and whether it is greedy."""
    nothing = asdict(Answer())
    return {key: value for key, value in asdict(answer).items() if value != nothing[key]}


def _parse(line: bytes) -> Answered | None:
    """One line; None if it is damaged: a crash may cut it short."""
    try:
        row = json.loads(line)
        return Answered(row["doc_id"], tuple(Answer(**given) for given in row["answers"]))
    except (ValueError, TypeError, KeyError):
        return None
