"""The funnel of a corpus: what each stage of data preparation removed, as `funnel.json` has it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bc2.errors import DataError

FUNNEL = "funnel.json"

Count = Annotated[int, Field(ge=0, strict=True)]


class _Read(BaseModel):
    """A part of `funnel.json`; keys of later versions are passed over."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Amount(_Read):
    """Documents, and UTF-8 bytes of their text."""

    documents: Count = 0
    bytes: Count = 0


class Group(Amount):
    """The documents of one source in one language."""

    source: str
    lang: str | None = None


class Removal(Amount):
    """What a stage removed for one reason: whole documents, and pieces of surviving ones."""

    cut_documents: Count = 0
    cut_bytes: Count = 0


class Step(_Read):
    """One stage: what came in, what went out, and why the rest did not."""

    name: str
    removed: dict[str, Removal] = {}
    before: tuple[Group, ...] = Field((), alias="in")
    after: tuple[Group, ...] = Field((), alias="out")
    facts: dict[str, Any] = {}
    seconds: float | None = None

    @property
    def rewritten(self) -> int:
        """Bytes that came to be fewer (or, below zero, more) for no reason that was counted:
        white space around what was cut, another form of the same text, a mark for a name."""
        counted = sum(one.bytes + one.cut_bytes for one in self.removed.values())
        return total(self.before).bytes - total(self.after).bytes - counted


class Bin(NamedTuple):
    """Documents whose value lies in [low, high)."""

    low: float
    high: float
    documents: int


class Histogram(_Read):
    """Documents by a value: `documents[i]` lie in [edges[i], edges[i + 1]).

    With as many counts as edges the last bin has no end.
    """

    edges: tuple[float, ...]
    documents: tuple[Count, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.edges) - len(self.documents) not in (0, 1):
            raise ValueError(f"{len(self.edges)} edges for {len(self.documents)} counts")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("the edges do not rise")
        return self

    def bins(self) -> list[Bin]:
        """From the first bin with a document to the last; an end that is open is infinite."""
        filled = [at for at, count in enumerate(self.documents) if count]
        ends = (*self.edges[1:], math.inf)
        found = list(map(Bin, self.edges, ends, self.documents))
        return found[filled[0] : filled[-1] + 1] if filled else []


class Against(_Read):
    """What an example's text was compared with: a benchmark's item, or the copy that stays."""

    name: str
    text: str


class Example(_Read):
    """One text that a stage removed, or cut."""

    stage: str
    reason: str
    text: str
    source: str = ""
    lang: str | None = None
    origin: str = ""
    """Where it was read: FILE:ROW."""
    detail: str | None = None
    whole: bool = True
    against: Against | None = None


class Funnel(_Read):
    """The contents of `funnel.json`."""

    version: Literal[1]
    read: Amount
    steps: tuple[Step, ...] = Field((), alias="stages")
    malformed: dict[str, dict[str, Amount]] = {}
    """By source and reason, left out while reading: rows that gave no document, which are no part
    of what was read, and documents too short, which are."""
    lengths: dict[str, Histogram] = {}
    """Surviving documents by Unicode characters, by language."""
    scores: dict[str, Histogram] = {}
    """Surviving documents by quality score, by language."""
    examples: tuple[Example, ...] = ()

    @classmethod
    def of(cls, data: Any, timings: Mapping[str, float] | None = None, where: str = FUNNEL) -> Self:
        """A funnel from the parsed JSON.

        Args:
            timings: seconds by stage, kept apart from what is the same in every run.
            where: the file, for messages.

        Raises:
            DataError: it is no funnel, or its numbers do not add up.
        """
        try:
            funnel = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise _broken(f"{at}: {first['msg']}", where) from error
        _check(funnel, where)
        return funnel.timed(timings) if timings else funnel

    @classmethod
    def open(cls, path: Path, timings: Mapping[str, float] | None = None) -> Self:
        """Read a `funnel.json`. Raises: DataError as `of`, or if it cannot be read."""
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _broken(str(error), str(path)) from error
        return cls.of(data, timings, str(path))

    def timed(self, timings: Mapping[str, float]) -> Self:
        """The same funnel with seconds by stage."""
        steps = tuple(
            step.model_copy(update={"seconds": timings.get(step.name, step.seconds)})
            for step in self.steps
        )
        return self.model_copy(update={"steps": steps})

    @cached_property
    def kept(self) -> Amount:
        """What is left after the last stage."""
        return total(self.steps[-1].after) if self.steps else self.read


def total(groups: Iterable[Amount]) -> Amount:
    """The sum of amounts."""
    found = list(groups)
    return Amount(
        documents=sum(one.documents for one in found), bytes=sum(one.bytes for one in found)
    )


def _check(funnel: Funnel, where: str) -> None:
    """Every document that goes is counted once, and what leaves a stage enters the next."""
    for step in funnel.steps:
        gone = total(step.before).documents - total(step.after).documents
        counted = sum(one.documents for one in step.removed.values())
        if gone != counted:
            raise _broken(f"{step.name} lost {gone:,} documents and counted {counted:,}", where)
    for one, following in pairwise(funnel.steps):
        if _amounts(one.after) != _amounts(following.before):
            raise _broken(f"what {one.name} left is not what {following.name} got", where)
    if funnel.steps and total(funnel.steps[0].before).documents > funnel.read.documents:
        raise _broken(f"{funnel.steps[0].name} got more documents than were read", where)


def _amounts(groups: Iterable[Group]) -> dict[tuple[str, str | None], tuple[int, int]]:
    found = list(groups)
    keys = {(one.source, one.lang) for one in found}
    sums = {key: total(one for one in found if (one.source, one.lang) == key) for key in keys}
    return {key: (one.documents, one.bytes) for key, one in sums.items() if one != Amount()}


def _broken(what: str, where: str) -> DataError:
    return DataError(
        f"this is no funnel: {what}", where=where, todo="make the corpus again with `bc2 data prep`"
    )
