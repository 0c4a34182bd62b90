"""What was found in texts lately: the stages of one segment read a part's texts in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")


class Recent(Generic[Found]):
    """Remembers what a function found in texts, by their digests (XXH3, 128 bits).

    Args:
        find: text -> what is found in it; it must not be changed afterwards.
        size: what is found -> its size. If all sizes add up to more than `limit`, all is forgotten.
    """

    def __init__(
        self, find: Callable[[str], Found], size: Callable[[str, Found], int], limit: int
    ) -> None:
        self._find, self._size, self._limit = find, size, limit
        self._known: dict[bytes, Found] = {}
        self._total = 0

    def __call__(self, text: str) -> Found:
        """What is found in a text."""
        from xxhash import xxh3_128_digest

        key = xxh3_128_digest(text.encode("utf-8", "surrogatepass"))
        if key in self._known:
            return self._known[key]
        found = self._find(text)
        self._total += self._size(text, found)
        if self._total > self._limit:
            self._known.clear()
            self._total = self._size(text, found)
        self._known[key] = found
        return found
