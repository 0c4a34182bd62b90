"""Safety: drop documents that a model must not learn, and mask personal data.

The user specifies such documents with word lists, lists of hosts and URLs, regular expressions
and a trained classifier. `bc2.data.prep.text.personal_data` finds personal data.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from bc2.data.inputs import check_regular
from bc2.data.language_tags import is_code
from bc2.data.prep.settings import PersonalKind, SafetySettings, WordListSettings
from bc2.data.prep.stages.base import Outcome, PrepStage, RemovedRow, removed
from bc2.data.prep.text.excerpts import excerpt
from bc2.data.prep.text.personal_data import IN_CODE, PersonalData, find_personal, mask_personal
from bc2.data.prep.text.piece_scores import SCORES
from bc2.data.prep.text.sentence_scorer import load_scorer, scorer_digests
from bc2.data.prep.text.sentences import CJK, divide, split_sentences
from bc2.errors import DataError
from bc2.files import sha256_file
from bc2.streams import open_bytes
from bc2.text_encoding import likely_encoding

_WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
_SPACED = re.compile(rf"[^\W{CJK}]")
#: A run of characters of host names, with what may follow; it is read once.
_HOST = re.compile(
    r"(?<![A-Za-z0-9_.-])(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)"
    r"(?::\d{1,5})?(?P<path>/[!-~]*+)?"
)


class Hit(NamedTuple):
    """Why a document is dropped."""

    reason: str
    detail: str
    place: int | None = None
    """Where the text that decided begins."""


class WordList:
    """Searches a text for all words of one list at once, by the Aho-Corasick algorithm.

    Measured with 10,000 words: 20 million characters a second in text where a match begins at one
    character in sixty, and 140 million in text without matches. One regular expression of all
    words reads 40 thousand characters a second.
    """

    def __init__(self, settings: WordListSettings):
        from ahocorasick_rs import AhoCorasick, MatchKind

        self.settings = settings
        self.words = list(dict.fromkeys(map(_folded, read_list(Path(settings.path)))))
        self._automaton = AhoCorasick(self.words, matchkind=MatchKind.Standard)

    def find(self, text: str) -> Counter[str]:
        """How often each word of the list occurs as a word; overlapping matches all count."""
        return self._found(text)[0]

    def _found(self, text: str) -> tuple[Counter[str], int]:
        """The words that occur, and where the first of them begins in the folded text."""
        low = _folded(text)  # which may be longer, so word boundaries are looked up in it
        found: Counter[str] = Counter()
        begins = len(low)
        for which, start, end in self._automaton.find_matches_as_indexes(low, overlapping=True):
            if _is_word(low, start, end):
                found[self.words[which]] += 1
                begins = min(begins, start)
        return found, begins

    def verdict(self, text: str) -> Hit | None:
        """A hit if the words found reach the limits."""
        found, begins = self._found(text)
        total = found.total()
        if total < self.settings.min_count:
            return None
        if self.settings.min_density > 0:
            words = sum(1 for _ in _WORD.finditer(text))
            if total * 1000 < self.settings.min_density * words:
                return None
        most = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        detail = f"{self.settings.name}: " + ", ".join(f"{word} {count}" for word, count in most)
        return Hit("word_list", detail, _unfolded(text, begins))


def _folded(text: str) -> str:
    """A text for comparison: accents composed, ligatures taken apart, case folded."""
    return unicodedata.normalize("NFC", text).casefold()


def _unfolded(text: str, place: int) -> int:
    """The character of a text that is at a place of the folded text."""
    before = range(len(text) + 1)
    return max(0, bisect_right(before, place, key=lambda end: len(_folded(text[:end]))) - 1)


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins and ends at word boundaries.

    CJK characters have no word boundaries, so a match between them always counts.
    """
    return not (_is_inside_word(text, start) or _is_inside_word(text, end))


def _is_inside_word(text: str, at: int) -> bool:
    if at <= 0 or at >= len(text):
        return False
    return bool(_SPACED.match(text, at - 1) and _SPACED.match(text, at))


class UrlList:
    """Searches a text for hosts (with their subdomains) and for beginnings of URLs."""

    def __init__(self, paths: Iterable[str]):
        self._hosts: dict[str, list[str]] = {}
        for path in paths:
            for entry in read_list(Path(path)):
                bare = re.sub(r"^[a-z]+://", "", entry.lower())
                host, slash, rest = bare.partition("/")
                host = host.removeprefix("www.")
                self._hosts.setdefault(host, []).append(slash + rest if rest else "")
        self._labels = max(host.count(".") for host in self._hosts) + 1

    def find(self, text: str) -> Hit | None:
        """The first listed host or URL in a text."""
        if "." not in text:
            return None
        for match in _HOST.finditer(text):
            if "." not in match["host"]:
                continue
            path = (match["path"] or "").lower()
            labels = match["host"].lower().rsplit(".", self._labels)[-self._labels :]
            for first in range(len(labels) - 1):
                host = ".".join(labels[first:])
                if any(path.startswith(start) for start in self._hosts.get(host, ())):
                    return Hit("url_list", match.group(), match.start())
        return None


def read_list(path: Path) -> list[str]:
    """The entries of a list, in order, each once. Lines that begin with # are comments.

    Raises:
        DataError: the file is missing, not UTF-8, or has no entry.
    """
    check_regular(path)
    with open_bytes(path) as stream:
        data = stream.read()
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        likely = likely_encoding(path)
        told = f"; the file is likely in {likely}" if likely else ""
        todo = f"make UTF-8 of it (iconv -f {likely or 'ENCODING'} -t UTF-8)"
        what = f"a list cannot be read: not UTF-8: byte {error.start}{told}"
        raise DataError(what, where=str(path), todo=todo) from error
    # Byte order marks, at the beginning or where lists were joined, are no part of an entry.
    entries = [line.strip("\ufeff").strip() for line in lines]
    entries = [entry for entry in entries if entry and not entry.startswith("#")]
    if not entries:
        raise DataError("a list has no entry", where=str(path), todo="fill it or leave it out")
    return list(dict.fromkeys(entries))


class _Tools(NamedTuple):
    """The lists and patterns, which each process reads once."""

    words: list[WordList]
    urls: UrlList | None
    patterns: list[tuple[str, re.Pattern[str]]]


class SafetyStage(PrepStage):
    """Drop documents by lists, patterns and classifier, in this order; then mask personal data.

    A document is dropped for the first reason that applies. `reasons` has a `pattern:NAME` for
    each pattern of the settings.
    """

    name: ClassVar[str] = "safety"
    version: ClassVar[int] = 2
    reasons: ClassVar[tuple[str, ...]] = (
        "word_list",
        "url_list",
        "unsafe",
        *(f"personal_{kind}" for kind in get_args(PersonalKind)),
    )

    def __init__(self, settings: SafetySettings):
        self.settings = settings
        named = tuple(f"pattern:{name}" for name in settings.patterns)
        self.reasons = (*type(self).reasons, *named)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "reasons": self.reasons}

    def check(self) -> None:
        """Read every list and the classifier.

        Raises:
            DataError: one is missing, is not UTF-8 or is empty.
            IntegrityError: the classifier's weights are not those that were saved.
        """
        _ = self._tools
        if self.settings.classifier is not None:
            load_scorer(Path(self.settings.classifier))

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of every file that is read, by its purpose.

        Raises:
            DataError: one is missing.
        """
        self.check()
        settings = self.settings
        files = {f"word_list:{each.name}": each.path for each in settings.word_lists}
        files |= {f"url_list:{i}": path for i, path in enumerate(settings.url_lists)}
        digests = {name: sha256_file(Path(path)) for name, path in files.items()}
        if settings.classifier is not None:
            scorer = scorer_digests(Path(settings.classifier))
            digests |= {f"classifier:{name}": digest for name, digest in scorer.items()}
        return digests

    @cached_property
    def _tools(self) -> _Tools:
        settings = self.settings
        return _Tools(
            [WordList(each) for each in settings.word_lists],
            UrlList(settings.url_lists) if settings.url_lists else None,
            [(name, re.compile(pattern)) for name, pattern in settings.patterns.items()],
        )

    def apply(self, table: pa.Table, verdict: pa.Table | None) -> Outcome:
        """Drop documents of one part, and mask personal data in the others."""
        texts: list[str] = table["text"].to_pylist()
        positions, langs = table["pos"].to_pylist(), table["lang"].to_pylist()
        unsafe = self._unsafe(texts)
        gone: list[RemovedRow] = []
        kept: list[bool] = []
        for i, text in enumerate(texts):
            hit = self._forbidden(text, langs[i]) or unsafe.get(i)
            pieces = [] if hit else self._personal(text, langs[i])
            if pieces and self.settings.personal == "drop":
                kinds = ", ".join(sorted({piece.kind for piece in pieces}))
                hit = Hit(f"personal_{pieces[0].kind}", kinds, pieces[0].start)
            kept.append(hit is None)
            if hit:
                size = len(text.encode())
                gone.append(RemovedRow(positions[i], hit.reason, size, True, hit.detail, hit.place))
            elif pieces:
                texts[i] = mask_personal(text, pieces, self.settings.mask)
                gone += _masked(positions[i], text, pieces)
        table = _replaced(table, texts)
        return Outcome(table.filter(pa.array(kept, pa.bool_())), removed(gone))

    def _forbidden(self, text: str, lang: str | None) -> Hit | None:
        """Why a list or a pattern forbids a text; None if none does."""
        tools = self._tools
        for words in tools.words:
            hit = words.verdict(text)
            if hit is not None:
                return hit
        hit = tools.urls.find(text) if tools.urls else None
        if hit is not None:
            return hit
        for name, pattern in tools.patterns:
            match = pattern.search(text)
            if match:
                # A match may be part of an address, which only the text around it shows.
                shown = excerpt(text, lang, match.span(), 0, 0).text
                return Hit(f"pattern:{name}", shown, match.start())
        return None

    def _unsafe(self, texts: Sequence[str]) -> dict[int, Hit]:
        """Row -> hit, for the texts that the classifier rejects."""
        if self.settings.classifier is None:
            return {}
        pieces = [split_sentences(text) for text in texts]
        scorer = load_scorer(Path(self.settings.classifier))
        scores = scorer.score([piece for each in pieces for piece in each])
        lengths = np.array([len(piece) for each in pieces for piece in each], dtype=np.int64)
        owners = np.repeat(np.arange(len(texts)), [len(each) for each in pieces])
        totals = np.bincount(owners, scores * lengths, minlength=len(texts))
        means = totals / np.maximum(np.bincount(owners, lengths, minlength=len(texts)), 1)
        low = np.flatnonzero(means < self.settings.min_safe).tolist()
        return {i: Hit("unsafe", f"mean {means[i]:.3f}") for i in low}

    def _personal(self, text: str, lang: str | None) -> list[PersonalData]:
        if self.settings.personal == "keep":
            return []
        kinds = set(self.settings.kinds)
        return find_personal(text, kinds & IN_CODE if is_code(lang) else kinds)


def _masked(pos: int, text: str, pieces: Sequence[PersonalData]) -> Iterator[RemovedRow]:
    """One row for each kind of personal data. The detail holds their number, never the data."""
    by_kind: dict[PersonalKind, list[PersonalData]] = {}
    for piece in pieces:
        by_kind.setdefault(piece.kind, []).append(piece)
    for kind, same in by_kind.items():
        size = sum(len(text[piece.start : piece.end].encode()) for piece in same)
        detail = f"{len(same)} masked"
        yield RemovedRow(pos, f"personal_{kind}", size, False, detail, same[0].start)


def _replaced(table: pa.Table, texts: list[str]) -> pa.Table:
    """The table with other texts.

    Scores of sentences or paragraphs become null where the number of these has changed.
    """
    place = table.schema.get_field_index("text")
    old = table["text"].to_pylist()
    changed = [i for i, (was, now) in enumerate(zip(old, texts, strict=True)) if was != now]
    table = table.set_column(place, table.schema.field(place), pa.array(texts, pa.large_string()))
    if not changed or not any(name in table.column_names for name in SCORES):
        return table
    divided = {i: divide(texts[i]) for i in changed}
    counts = {
        "paragraph_scores": {i: len(found) for i, found in divided.items()},
        "sentence_scores": {i: sum(len(p.sentences) for p in f) for i, f in divided.items()},
    }
    for name, count in counts.items():
        if name in table.column_names:
            values = table[name].to_pylist()
            for i in changed:
                if values[i] is not None and count[i] != len(values[i]):
                    values[i] = None
            at = table.schema.get_field_index(name)
            field = table.schema.field(at)
            table = table.set_column(at, field, pa.array(values, field.type))
    return table
