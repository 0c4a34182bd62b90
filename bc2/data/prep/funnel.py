"""The funnel of a corpus: what each stage removed. Its file is ``funnel.json`` in the corpus.

This module defines the format of that file: `bc2.data.prep.funnel_totals` fills it, and reports
read it. Every number is an integer and a sum over documents, so it does not depend on how the work
was divided. Seconds are not in the file, so the same input gives the same bytes.
"""

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

#: Name of the file in a corpus.
FUNNEL = "funnel.json"

#: The stage that cuts copies of passages.
PASSAGES = "passages"

Count = Annotated[int, Field(ge=0, strict=True)]


class _Record(BaseModel):
    """An object of ``funnel.json``, with its fields in the order of the keys in the file.

    Keys that a later version adds are ignored.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Amount(_Record):
    """A number of documents, and the UTF-8 bytes of their text."""

    documents: Count = 0
    bytes: Count = 0


class GroupAmount(_Record):
    """The documents of one source in one language."""

    source: str
    lang: str | None = None
    documents: Count = 0
    bytes: Count = 0


class Removal(Amount):
    """What a stage removed for one reason: documents, and pieces of documents that stay."""

    cut_documents: Count = 0
    cut_bytes: Count = 0


class StageAmounts(_Record):
    """One stage: the documents before and after it, and what it removed for which reason."""

    name: str
    version: int | None = None
    removed: dict[str, Removal] = {}
    """By reason."""
    before: tuple[GroupAmount, ...] = Field((), alias="in")
    after: tuple[GroupAmount, ...] = Field((), alias="out")
    facts: dict[str, Any] = {}
    """What `PrepStage.settle` returned."""
    seconds: float | None = Field(None, exclude=True)
    """Seconds of all workers, if known; never in the file."""

    @property
    def rewritten(self) -> int:
        """UTF-8 bytes by which the text became shorter without a counted reason.

        Causes are white space around a cut, NFC, and masks for personal data. It is negative if
        the text became longer.
        """
        counted = sum(one.bytes + one.cut_bytes for one in self.removed.values())
        return total(self.before).bytes - total(self.after).bytes - counted


class LostPassages(_Record):
    """Passages that `passages` cut and whose first copy later stages removed."""

    passages: Count = 0
    bytes: Count = 0


class Bin(NamedTuple):
    """Documents whose value lies in [low, high)."""

    low: float
    high: float
    documents: int


class Histogram(_Record):
    """Documents by a value: `documents[i]` of them have a value in [edges[i], edges[i + 1]).

    If there are as many counts as edges, the last bin has no upper end.
    """

    edges: tuple[int | float, ...]
    documents: tuple[Count, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.edges) - len(self.documents) not in (0, 1):
            raise ValueError(f"{len(self.edges)} edges for {len(self.documents)} counts")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("the edges do not rise")
        return self

    def bins(self) -> list[Bin]:
        """The bins from the first to the last with a document; an open upper end is infinite."""
        filled = [at for at, count in enumerate(self.documents) if count]
        ends = (*self.edges[1:], math.inf)
        found = list(map(Bin, self.edges, ends, self.documents))
        return found[filled[0] : filled[-1] + 1] if filled else []


class Against(_Record):
    """What the text of an example matches: a benchmark's item, or the document that stays."""

    name: str
    text: str


class Example(_Record):
    """A document that a stage removed or cut; personal data in it is masked."""

    stage: str
    reason: str
    source: str = ""
    lang: str | None = None
    origin: str = ""
    """Where the document was read: FILE:ROW."""
    detail: str | None = None
    """What matched or failed."""
    text: str
    """The document's text around what decided; where that is not known, its beginning."""
    place: tuple[Count, Count] | None = None
    """Where what decided begins, and where the word or mask there ends, in `text`."""
    whole: bool = True
    """True if the document was removed, False if a piece of it was cut."""
    against: Against | None = Field(None, exclude=True)
    """What the text matches, if a report found that in `detail`."""

    def pieces(self) -> tuple[str, str, str]:
        """The text before, at and after the place; all of it first if no place is known."""
        start, stop = self.place or (len(self.text), len(self.text))
        return self.text[:start], self.text[start:stop], self.text[stop:]


class Funnel(_Record):
    """The contents of `funnel.json`."""

    version: Literal[1]
    read: Amount
    """All documents that were read; shares are of this."""
    stages: tuple[StageAmounts, ...] = ()
    malformed: dict[str, dict[str, Amount]] = {}
    """What was left out while reading, by source and reason. Rows that could not be read are not
    part of `read`; documents that are too short are."""
    lengths: dict[str, Histogram] = {}
    """Language -> the remaining documents by their length in Unicode characters."""
    scores: dict[str, Histogram] = {}
    """Language -> the remaining documents by their quality score."""
    examples: tuple[Example, ...] = ()

    @classmethod
    def of(cls, data: Any, timings: Mapping[str, float] | None = None, where: str = FUNNEL) -> Self:
        """Make a funnel from the parsed JSON.

        Args:
            timings: seconds by stage, which are not in the file.
            where: the file, for errors.

        Raises:
            DataError: it is not a funnel, or its numbers do not add up.
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
        """Read a `funnel.json`.

        Raises:
            DataError: it cannot be read, or for the reasons of `of`.
        """
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise _broken(str(error), str(path)) from error
        return cls.of(data, timings, str(path))

    def as_json(self) -> dict[str, Any]:
        """The contents of ``funnel.json``, in its order."""
        return self.model_dump(by_alias=True)

    def timed(self, timings: Mapping[str, float]) -> Self:
        """The same funnel with seconds by stage."""
        stages = tuple(
            stage.model_copy(update={"seconds": timings.get(stage.name, stage.seconds)})
            for stage in self.stages
        )
        return self.model_copy(update={"stages": stages})

    @cached_property
    def lost_passages(self) -> LostPassages:
        """What was cut as a copy and stands in no document; none of an older version."""
        facts: dict[str, Any] = next((one.facts for one in self.stages if one.name == PASSAGES), {})
        return LostPassages.model_validate(facts.get("lost_with_holder", {}))

    @cached_property
    def kept(self) -> Amount:
        """The documents that are left after the last stage."""
        return total(self.stages[-1].after) if self.stages else self.read


def total(groups: Iterable[Amount | GroupAmount]) -> Amount:
    """The sum of amounts."""
    found = list(groups)
    return Amount(
        documents=sum(one.documents for one in found), bytes=sum(one.bytes for one in found)
    )


def _check(funnel: Funnel, where: str) -> None:
    """Check that a stage counts each removed document once, and passes on all others.

    Raises:
        DataError: it does not.
    """
    for stage in funnel.stages:
        gone = total(stage.before).documents - total(stage.after).documents
        counted = sum(one.documents for one in stage.removed.values())
        if gone != counted:
            raise _broken(f"{stage.name} lost {gone:,} documents and counted {counted:,}", where)
    for one, following in pairwise(funnel.stages):
        if _amounts(one.after) != _amounts(following.before):
            raise _broken(f"what {one.name} left is not what {following.name} got", where)
    if funnel.stages and total(funnel.stages[0].before).documents > funnel.read.documents:
        raise _broken(f"{funnel.stages[0].name} got more documents than were read", where)


def _amounts(groups: Iterable[GroupAmount]) -> dict[tuple[str, str | None], tuple[int, int]]:
    found = list(groups)
    keys = {(one.source, one.lang) for one in found}
    sums = {key: total(one for one in found if (one.source, one.lang) == key) for key in keys}
    return {key: (one.documents, one.bytes) for key, one in sums.items() if one != Amount()}


def _broken(what: str, where: str) -> DataError:
    return DataError(
        f"no valid funnel: {what}", where=where, todo="make the corpus again with `bc2 data prep`"
    )
