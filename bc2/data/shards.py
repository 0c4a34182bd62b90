"""Token shards: flat arrays on disk, read by (split, source, position).

    train/SOURCE/shard-00000.bin   heldout/SOURCE/shard-00000.bin   tokens.json

A shard is little-endian uint16 (vocabularies up to 65,536) or uint32, each document
followed by EOS. The shards of a source read as one array, in order.

They are read with pread and not mapped: of a mapped file that shrinks, or whose disk
fails, the kernel kills the process; and a read releases the GIL while the disk works.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.data.splits import SPLITS
from bc2.errors import (
    Bc2Error,
    DataError,
    IntegrityError,
    TooManyOpenFiles,
    from_os_error,
    nearest,
)
from bc2.process import open_files

INDEX = "tokens.json"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

#: Shards kept open at once, where as many files may be open: see `open_files.share`.
_OPEN = 256

_RESTORE = "bring the file back (`bc2 registry verify` finds what else is damaged)"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of shards: two bytes a token where they suffice."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class ShardStream:
    """The shards of one source and split as one array."""

    files: tuple[str, ...]
    """Paths relative to the shards' directory."""
    ends: npt.NDArray[np.int64]
    """[files] tokens up to the end of each."""
    documents: int
    bytes: int
    """UTF-8 bytes of the text."""

    @property
    def tokens(self) -> int:
        return int(self.ends[-1])


class TokenShards:
    """A directory of token shards.

    Attributes:
        vocab_size: ids are below it.
        eos_id: the id after each document.
        tokenizer: digest of the tokenizer that made them.
        weights: share of what is drawn of each source, up to a common factor; None if the
            corpus states none.
        facts: the contents of `tokens.json`.

    Where the corpus has strata, they are the sources here; `source_of` says whose they are.
    """

    def __init__(self, root: Path, facts: dict[str, Any]):
        self.root = root
        self.facts = facts
        self.vocab_size: int = facts["vocab_size"]
        self.eos_id: int = facts["eos_id"]
        self.tokenizer: str = facts["tokenizer"]
        self.weights: dict[str, int] | None = facts.get("weights")
        self._source_of: dict[str, str] = facts.get("strata", {})
        self._dtype = np.dtype(facts["dtype"])
        self._streams: dict[tuple[str, str], ShardStream] = {
            (split, source): _stream(entry)
            for split in SPLITS
            for source, entry in facts["splits"][split].items()
        }
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._most_open = open_files.share(_OPEN)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, root: Path) -> TokenShards:
        """Open shards, checking that each file is there with the size the index gives.

        Raises:
            DataError: the directory holds no token shards.
            IntegrityError: a shard is missing or has another size.
        """
        path = root / INDEX
        try:
            shards = cls(root, json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"these are no token shards: {error}",
                where=str(path),
                todo="name what `bc2 data tokenize` made",
            ) from error
        shards._check_sizes()
        return shards

    def sources(self, split: str) -> list[str]:
        """Names of the sources that have tokens in a split."""
        return [source for at, source in self._streams if at == split]

    def source_of(self, name: str) -> str:
        """The source of the recipe that a stratum is of; a source is its own."""
        return self._source_of.get(name, name)

    def in_turns(self, split: str) -> list[str]:
        """The names of `sources`, each source's first stratum, then each one's second, ..."""
        seen: Counter[str] = Counter()
        turns: dict[str, int] = {}
        for name in self.sources(split):
            turns[name] = seen[self.source_of(name)]
            seen[self.source_of(name)] += 1
        return sorted(turns, key=turns.__getitem__)

    def num_tokens(self, split: str, source: str) -> int:
        """Tokens of a source, EOS included."""
        return self._stream(split, source).tokens

    def num_documents(self, split: str, source: str) -> int:
        """Documents of a source."""
        return self._stream(split, source).documents

    def num_bytes(self, split: str, source: str) -> int:
        """UTF-8 bytes of the text of a source."""
        return self._stream(split, source).bytes

    def window(self, split: str, source: str, start: int, length: int) -> Tokens:
        """Tokens [start, start + length) of a source, a copy, across shard borders.

        Raises:
            IndexError: the window is not inside the source.
            DataError: a shard is gone, shorter than it was, or cannot be read.
        """
        stream = self._stream(split, source)
        if start < 0 or length < 0 or start + length > stream.tokens:
            raise IndexError(f"[{start}, {start + length}) of {stream.tokens} tokens")
        window = np.empty(length, self._dtype)
        size = self._dtype.itemsize
        unread = window.view(np.uint8).data
        shard = int(np.searchsorted(stream.ends, start, side="right"))
        while unread:
            begin = int(stream.ends[shard - 1]) if shard else 0
            at = start + length - len(unread) // size
            wanted = min(len(unread), (int(stream.ends[shard]) - at) * size)
            self._file(stream.files[shard]).read(unread[:wanted], (at - begin) * size)
            unread = unread[wanted:]
            shard += 1
        return window

    def _stream(self, split: str, source: str) -> ShardStream:
        stream = self._streams.get((split, source))
        if stream is None:
            names = self.sources(split)
            guess = nearest(source, names) or ", ".join(names) or "none"
            raise DataError(
                f"no {split} tokens of source {source!r}",
                where=str(self.root),
                todo=f"there are: {guess}",
            )
        return stream

    def _file(self, name: str) -> _File:
        with self._lock:
            file = self._files.get(name)
            if file is None:
                if self._files and len(self._files) >= self._most_open:
                    self._files.popitem(last=False)
                file = self._files[name] = self._open(name)
            else:
                self._files.move_to_end(name)
            return file

    def _open(self, name: str) -> _File:
        """Open a shard; if there is no file left for it, after closing those that are kept.

        Raises:
            DataError: the shard is gone or cannot be opened.
            TooManyOpenFiles: there is no file to be had even so.
        """
        with suppress(TooManyOpenFiles):
            return _File(self.root / name)
        self._files.clear()
        return _File(self.root / name)

    def _check_sizes(self) -> None:
        for stream in self._streams.values():
            counts = np.diff(stream.ends, prepend=0)
            for file, count in zip(stream.files, counts, strict=True):
                path = self.root / file
                size = os.stat(path).st_size if path.is_file() else None
                if size != count * self._dtype.itemsize:
                    raise IntegrityError(
                        f"shard has {size} bytes, not {count * self._dtype.itemsize}",
                        where=str(path),
                        todo="make the token shards again with `bc2 data tokenize`",
                    )


class _File:
    """An open shard. It closes with its last reference, so never under a thread that reads."""

    def __init__(self, path: Path):
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DataError("the shard is gone", where=str(path), todo=_RESTORE) from None
        except OSError as error:
            raise self._unreadable(error) from error

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # By an argument: at the interpreter's end this module has no names any more.
        if self._fd >= 0:
            close(self._fd)

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with the bytes from `offset` on. Raises: DataError if it cannot."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self._fd, [into[done:]], offset + done)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise DataError(
                    f"the shard ends early: wanted {len(into)} bytes at {offset}, got {done}",
                    where=str(self.path),
                    todo=_RESTORE,
                )
            done += count

    def _unreadable(self, error: OSError) -> Bc2Error:
        if open_files.none_left(error):
            return from_os_error(error, "reading token shards")
        reason = (error.strerror or str(error)).lower()
        return DataError(f"cannot read the shard: {reason}", where=str(self.path), todo=_RESTORE)


def _stream(entry: dict[str, Any]) -> ShardStream:
    shards = entry["shards"]
    return ShardStream(
        files=tuple(shard["file"] for shard in shards),
        ends=np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64),
        documents=entry["documents"],
        bytes=entry["bytes"],
    )
