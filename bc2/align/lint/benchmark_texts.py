"""Texts of the benchmarks that lie on this machine, to be searched for in conversations.

As in preparing a corpus (`bc2.data.prep.stages.decontaminate`): 13 consecutive words that are equal
but for case, white space and punctuation (20 characters of Chinese), or all of a shorter text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bc2.cache_folder import cache_folder
from bc2.data.prep.settings import DecontaminateSettings
from bc2.data.prep.stages.decontamination.ngram_index import NgramIndex, Sizes, Units
from bc2.errors import DataError
from bc2.files import lock_directory, make_directory, sha256_json, sync_tree, write_durably
from bc2.harness.release import SEARCHED, Release, local_release

#: Splits that a model may learn from: shots and training questions.
_NOT_ASKED = frozenset({"train", "dev", "prompt"})

_DEFAULTS = {name: field.default for name, field in DecontaminateSettings.model_fields.items()}

#: How long a match is, as [corpus.decontaminate] has it.
SIZES = Sizes(*(_DEFAULTS[name] for name in ("ngram", "cjk_ngram", "min_words", "min_cjk")))

#: Texts with fewer characters have fewer words, too (but for ½ and the like, which are several).
_SHORTEST = min(2 * SIZES.min_words - 1, SIZES.min_cjk)

#: Raised when the same texts would have another index.
_VERSION = 2
#: A file that says that all others are there.
_WHOLE = "whole"

#: Characters of text that are searched at a time: about 60 bytes of memory each.
_CHUNK = 1 << 18


class BenchmarkText(NamedTuple):
    """One text of a benchmark."""

    benchmark: str
    place: str
    """Subset, split and number of its row."""
    text: str


@dataclass(frozen=True)
class FoundBenchmarks:
    """What there is to be searched for."""

    texts: tuple[BenchmarkText, ...]
    missing: tuple[str, ...]
    """Benchmarks that do not lie here."""
    unreadable: Mapping[str, str]
    """Benchmarks that cannot be read, and why."""

    @property
    def names(self) -> list[str]:
        """Benchmarks that were found."""
        return list(dict.fromkeys(one.benchmark for one in self.texts))


def find_benchmarks(folder: Path | None = None) -> FoundBenchmarks:
    """Read the test and validation rows of every release that lies on this machine.

    Args:
        folder: that holds them; None: ``$BC2_BENCH_DATA``, else bc2's cache.

    Raises:
        DataError: the folder is none.
    """
    if folder is not None and not folder.is_dir():
        todo = "give the folder that holds the benchmarks"
        raise DataError("no such folder", where=str(folder), todo=todo)
    texts: list[BenchmarkText] = []
    missing: list[str] = []
    unreadable: dict[str, str] = {}
    for name in SEARCHED:
        try:
            release = local_release(name, folder)
        except DataError as error:
            unreadable[name] = str(error).partition("\n")[0]
            continue
        if release is None:
            missing.append(name)
        else:
            texts += _texts_of(release)
    return FoundBenchmarks(tuple(texts), tuple(missing), unreadable)


def _texts_of(release: Release) -> Iterator[BenchmarkText]:
    for (_, subset), splits in release.datasets.items():
        for split, rows in splits.items():
            if split in _NOT_ASKED:
                continue
            front = "/".join(part for part in (subset, split) if part)
            for number, row in enumerate(rows, 1):
                for text in _strings(row):
                    yield BenchmarkText(release.source, f"{front}:{number}", text)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if len(value) >= _SHORTEST:
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _strings(one)


def saved_index(known: FoundBenchmarks) -> Path | None:
    """A folder of the cache with the index of the texts, made if it is not there; None: no texts.

    Making it takes seconds; every process of a lint maps the same files.
    """
    if not known.texts:
        return None
    texts = hashlib.sha256()
    for one in known.texts:
        texts.update(f"{len(one.text)}:{one.text}".encode("utf-8", "surrogatepass"))
    key = sha256_json([_VERSION, list(SIZES), texts.hexdigest()])
    folder = cache_folder() / "benchmarks" / key[:32]
    make_directory(folder)
    with lock_directory(folder, wait=True):
        if not (folder / _WHOLE).exists():
            index, _ = NgramIndex.of([one.text for one in known.texts], SIZES)
            index.save(folder)
            sync_tree(folder)
            write_durably(folder / _WHOLE, b"")
    return folder


class Match(NamedTuple):
    """A place in a text with words of a benchmark."""

    text: int
    """Which of the texts that were searched."""
    benchmark_text: int
    """Which of the benchmarks' texts: the first that has these words."""
    start: int
    """Its first character."""
    stop: int


def matches(index: NgramIndex, texts: Sequence[str]) -> list[Match]:
    """The first place of each text and benchmark's text that have words in common."""
    found: dict[tuple[int, int], Match] = {}
    first = 0
    for some in _chunks(texts):
        units = Units.of(some)
        for at, gram in zip(*(one.tolist() for one in index.find(units)), strict=True):
            text, theirs = first + int(units.text[at]), int(index.text[gram])
            stop = int(units.stop[at + int(index.size[gram]) - 1])
            found.setdefault((text, theirs), Match(text, theirs, int(units.start[at]), stop))
        first += len(some)
    return list(found.values())


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about `_CHUNK` characters."""
    first = size = 0
    for number, text in enumerate(texts):
        if size and size + len(text) > _CHUNK:
            yield texts[first:number]
            first, size = number, 0
        size += len(text)
    if texts:
        yield texts[first:]
