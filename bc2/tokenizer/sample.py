"""Training text cut into items that SentencePiece's trainer uses in full.

The trainer silently skips an item that is longer than its ``max_sentence_length`` or
holds U+2585 (its mark for unknown characters), drops NUL, and takes U+2581 for a space.
Here text is cut so that nothing of this happens, and every byte is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bc2.tokenizer.layout import SPACE_MARK

#: Longest item, in bytes; what SentencePiece is told is its limit.
MAX_ITEM_BYTES = 4096

#: Characters that can never be in a piece: text is cut at them, and they fall back to bytes.
_UNTRAINABLE = re.compile(f"[\0{SPACE_MARK}\u2585\ud800-\udfff]+")


@dataclass
class Sample:
    """Cuts texts into items and counts what goes by; read the counts after the last item.

    Args:
        budget_bytes: stop before the item that would exceed this many bytes.

    Attributes:
        documents: texts of which something was used.
        untrainable_bytes: bytes of characters that can be in no piece.
        long_lines: lines cut inside, for being longer than an item.
    """

    budget_bytes: int
    documents: int = 0
    items: int = 0
    used_bytes: int = 0
    untrainable_bytes: int = 0
    long_lines: int = 0

    def cut(self, texts: Iterable[str]) -> Iterator[bytes]:
        """UTF-8 items of at most `MAX_ITEM_BYTES`, cut at line ends.

        A line that is longer is cut at character boundaries and counted in `long_lines`.
        """
        for text in texts:
            for number, item in enumerate(self._items_of(text)):
                if self.used_bytes + len(item) > self.budget_bytes:
                    return
                self.documents += number == 0
                self.items += 1
                self.used_bytes += len(item)
                yield item

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def _items_of(self, text: str) -> Iterator[bytes]:
        start = 0
        for match in _UNTRAINABLE.finditer(text):
            self.untrainable_bytes += len(match[0].encode("utf-8", "surrogatepass"))
            yield from self._lines_of(text[start : match.start()].encode())
            start = match.end()
        yield from self._lines_of((text[start:] if start else text).encode())

    def _lines_of(self, data: bytes) -> Iterator[bytes]:
        start = 0
        inside_line = False
        while len(data) - start > MAX_ITEM_BYTES:
            end = data.rfind(b"\n", start, start + MAX_ITEM_BYTES) + 1
            if end == 0:
                self.long_lines += not inside_line
                end = _character_boundary(data, start + MAX_ITEM_BYTES)
            inside_line = data[end - 1] != ord("\n")
            yield data[start:end]
            start = end
        if start < len(data):
            yield data[start:]


def _character_boundary(data: bytes, end: int) -> int:
    """The last start of a character at or before `end`."""
    while data[end] & 0xC0 == 0x80:
        end -= 1
    return end
