"""What the texts of conversations are: languages, copies, words of benchmarks, control tokens.

Nothing of it is an error, and no sample is drawn: every conversation is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.align.lint.benchmark_texts import Match, matches
from bc2.console import Progress
from bc2.data.chats.chats import Chats
from bc2.data.chats.conversation import Conversation
from bc2.data.prep.stages.decontamination.ngram_index import NgramIndex
from bc2.data.prep.text.language_id import VARIETIES, identify
from bc2.data.splits import Split
from bc2.data.workers import cores, in_order, worker_pool

if TYPE_CHECKING:
    from threading import Event

#: Conversations that a process reads at once.
_CHUNK = 2048

#: Conversations that are worth a further process.
_WORTH_A_PROCESS = 2 * _CHUNK

#: Characters by which the language is told: as good as more, and twice as quick as 1,000.
_LANGUAGE_SAMPLE = 500

#: ISO 639's code for what is in no language: numbers and signs, of which all are as likely.
_NO_LANGUAGE = "zxx"

_LANGUAGE_OF = {variety: code for code, found in VARIETIES.items() for variety in found}


@dataclass(frozen=True)
class Overlap:
    """A conversation with words of a benchmark."""

    index: int
    """Its place in the split."""
    benchmark_text: int
    """Which of the benchmarks' texts."""
    words: str
    """What they have in common."""


@dataclass
class TextScan:
    """What was found in conversations, those of a split or of a part of it. Shapes: N of them."""

    digests: list[bytes] = field(default_factory=list)
    """[N], equal for conversations that say the same."""
    languages: list[str] = field(default_factory=list)
    """[N] ISO 639 codes."""
    overlaps: list[Overlap] = field(default_factory=list)
    spelled: list[tuple[int, str]] = field(default_factory=list)
    """Conversations that spell a control token, and the first that they do."""
    unanswered: list[int] = field(default_factory=list)
    """Conversations in which the user has the last word."""

    def __iadd__(self, other: TextScan) -> TextScan:
        self.digests += other.digests
        self.languages += other.languages
        self.overlaps += other.overlaps
        self.spelled += other.spelled
        self.unanswered += other.unanswered
        return self

    def copies(self, source_ids: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
        """Conversations that were said before.

        Args:
            source_ids: [N].

        Returns:
            Of those that their own source has said before, the place of the first and their own;
            and how many any source has said before.
        """
        first: dict[tuple[int, bytes], int] = {}
        within = []
        for index, key in enumerate(zip(source_ids, self.digests, strict=True)):
            before = first.setdefault(key, index)
            if before != index:
                within.append((before, index))
        return within, len(self.digests) - len(set(self.digests))

    def languages_by(self, source_ids: Sequence[int]) -> dict[int, Counter[str]]:
        """How many conversations of each source are in each language."""
        found: dict[int, Counter[str]] = {}
        for source, language in zip(source_ids, self.languages, strict=True):
            found.setdefault(source, Counter())[language] += 1
        return found


@dataclass(frozen=True)
class Scanner:
    """Reads conversations.

    Args:
        names: control tokens, as they are spelled.
        index: what of benchmarks to search for; None: nothing.
    """

    names: re.Pattern[str] | None
    index: NgramIndex | None

    @classmethod
    def of(cls, names: Iterable[str], index: NgramIndex | None) -> Scanner:
        """A scanner for names of at least two characters."""
        longest = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, longest))) if longest else None
        return cls(pattern, index)

    def __call__(self, conversations: Iterable[Conversation], first: int = 0) -> TextScan:
        """Scan conversations, of which the first has the place `first`."""
        found = TextScan()
        # Answers to one prompt have it in common: it is searched once.
        said_by: dict[str, list[int]] = {}
        for index, one in enumerate(conversations, first):
            said = [message["content"] for message in one.messages if message["role"] != "system"]
            found.digests.append(bytes.fromhex(one.digest)[:16])
            found.languages.append(_language("\n".join(said)[:_LANGUAGE_SAMPLE]))
            spelled = self._spelled(message["content"] for message in one.messages)
            found.spelled += [(index, spelled)] if spelled else []
            found.unanswered += [index] if one.messages[-1]["role"] == "user" else []
            for text in said:
                said_by.setdefault(text, []).append(index)
        texts = list(said_by)
        shared = matches(self.index, texts) if self.index is not None else []
        every = [one for match in shared for one in _overlaps(match, texts[match.text], said_by)]
        found.overlaps = sorted(every, key=lambda one: one.index)
        return found

    def _spelled(self, texts: Iterable[str]) -> str | None:
        if self.names is None:
            return None
        places = (self.names.search(text) for text in texts)
        return next((place[0] for place in places if place is not None), None)


@lru_cache(maxsize=256)
def _language(text: str) -> str:
    if not any(character.isalpha() for character in text):
        return _NO_LANGUAGE
    code = identify(text, ()).language
    return _LANGUAGE_OF.get(code, code)


def _overlaps(match: Match, text: str, said_by: Mapping[str, list[int]]) -> Iterator[Overlap]:
    """A match as an overlap of each conversation in which the text is said."""
    words = text[match.start : match.stop]
    for index in dict.fromkeys(said_by[text]):
        yield Overlap(index, match.benchmark_text, words)


def scan_split(
    folder: Path,
    split: Split,
    names: Sequence[str],
    index: Path | None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> TextScan:
    """Scan the conversations of a split, in as many processes as there are cores.

    Args:
        folder: of the artifact of kind chats.
        names: control tokens, as they are spelled.
        index: where `NgramIndex.save` wrote what to search for; None: nothing.
        progress: told of conversations as they are done.

    Raises:
        ResourceError: a worker was killed for memory.
    """
    count = Chats.open(folder).count(split)
    spans = [(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
    processes = min(workers or cores(), 1 + count // _WORTH_A_PROCESS)
    whole = TextScan()
    for span, part in zip(
        spans, _parts(folder, split, names, index, spans, processes), strict=True
    ):
        whole += part
        if progress is not None:
            progress(span[1] - span[0])
    return whole


def _parts(
    folder: Path, split: Split, names: Sequence[str], index: Path | None,
    spans: Sequence[tuple[int, int]], processes: int,
) -> Iterator[TextScan]:  # fmt: skip
    if processes == 1:
        _begin_worker(folder, split, names, index)
        yield from map(_in_worker, spans)
        _worker.clear()
        return
    todo = "run the same again with fewer --workers"
    with worker_pool(
        processes, "reading", todo, _begin_worker, folder, split, names, index
    ) as pool:
        yield from in_order(pool, _in_worker, spans, 2 * processes)


_worker: dict[str, Any] = {}


def _begin_worker(
    folder: Path, split: Split, names: Sequence[str], index: Path | None, stop: Event | None = None
) -> None:
    grams = NgramIndex.load(index) if index is not None else None
    _worker.update(chats=Chats.open(folder), split=split, scan=Scanner.of(names, grams))


def _in_worker(span: tuple[int, int]) -> TextScan:
    found: TextScan = _worker["scan"](_worker["chats"].read(_worker["split"], *span), span[0])
    return found
