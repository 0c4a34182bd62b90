"""Text from a stream of tokens: whole characters only, nothing after a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns token ids into text as they come.

    A token may end inside a UTF-8 character or inside what may become a stop text; such
    bytes wait for the next token. The pieces together are the text of all bytes before
    the first stop text, with U+FFFD for bytes that are no UTF-8.

    Args:
        decode_bytes: the bytes that ids stand for: `Tokenizer.decode_bytes`.
        stop: texts that end the stream; they are not shown.
    """

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes], stop: Sequence[str] = ()):
        self._decode_bytes = decode_bytes
        self._stops = [text.encode("utf-8", "surrogatepass") for text in stop]
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; often "", at a stop text's end for good."""
        if self.stopped:
            return ""
        self._held += self._decode_bytes([token])
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return self._characters.decode(self._held[: min(found)], final=True)
        ready = len(self._held) - self._begun()
        shown, self._held = self._held[:ready], self._held[ready:]
        return self._characters.decode(shown)

    def finish(self) -> str:
        """The text of what still waits; call once, after the last token."""
        if self.stopped:
            return ""
        held, self._held = self._held, b""
        return self._characters.decode(held, final=True)

    def _begun(self) -> int:
        """Bytes at the end that are the beginning of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
