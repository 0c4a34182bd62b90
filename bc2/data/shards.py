"""Token shards: flat arrays on disk, memory-mapped, read by (split, source, position).

    train/SOURCE/shard-00000.bin   heldout/SOURCE/shard-00000.bin   tokens.json

A shard is little-endian uint16 (vocabularies up to 65,536) or uint32, each document
followed by EOS. The shards of a source read as one array, in order.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bc2.data.corpus import SPLITS
from bc2.errors import DataError, IntegrityError, nearest

INDEX = "tokens.json"

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]

#: Shards kept mapped at once: each holds a file descriptor.
_MAPPED = 256


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of shards: two bytes a token where they suffice."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class Stream:
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
        facts: the contents of `tokens.json`.
    """

    def __init__(self, root: Path, facts: dict[str, Any]):
        self.root = root
        self.facts = facts
        self.vocab_size: int = facts["vocab_size"]
        self.eos_id: int = facts["eos_id"]
        self.tokenizer: str = facts["tokenizer"]
        self._dtype = np.dtype(facts["dtype"])
        self._streams: dict[tuple[str, str], Stream] = {
            (split, source): _stream(entry)
            for split in SPLITS
            for source, entry in facts["splits"][split].items()
        }
        self._maps: OrderedDict[str, npt.NDArray[Any]] = OrderedDict()
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
        """
        stream = self._stream(split, source)
        if start < 0 or length < 0 or start + length > stream.tokens:
            raise IndexError(f"[{start}, {start + length}) of {stream.tokens} tokens")
        window = np.empty(length, self._dtype)
        filled = 0
        shard = int(np.searchsorted(stream.ends, start, side="right"))
        while filled < length:
            begin = int(stream.ends[shard - 1]) if shard else 0
            tokens = self._map(stream.files[shard])
            at = start + filled - begin
            piece = tokens[at : at + length - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return window

    def _stream(self, split: str, source: str) -> Stream:
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

    def _map(self, file: str) -> npt.NDArray[Any]:
        with self._lock:
            tokens = self._maps.get(file)
            if tokens is None:
                tokens = np.memmap(self.root / file, self._dtype, mode="r")
                self._maps[file] = tokens
            self._maps.move_to_end(file)
            if len(self._maps) > _MAPPED:
                self._maps.popitem(last=False)
            return tokens

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


def _stream(entry: dict[str, Any]) -> Stream:
    shards = entry["shards"]
    return Stream(
        files=tuple(shard["file"] for shard in shards),
        ends=np.cumsum([shard["tokens"] for shard in shards], dtype=np.int64),
        documents=entry["documents"],
        bytes=entry["bytes"],
    )
