"""Turn a stream of tokens into text: only whole characters, and nothing after a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


def first_stop(data: bytes | bytearray, stops: Sequence[bytes], start: int = 0) -> int | None:
    """Where the stop text begins that is complete first, at or after `start`; None without one.

    Of those that end together the longest counts. So it does not matter how tokens cut the data.
    """
    found = [(at + len(stop), at) for stop in stops if (at := data.find(stop, start)) >= 0]
    return min(found)[1] if found else None


class TextStream:
    """Turns token ids into pieces of text, one token at a time.

    A token may end inside a UTF-8 character, or inside what may become a stop text. Such bytes
    are held until later tokens decide. All pieces together are the text of the bytes before the
    first stop text (see `first_stop`), with U+FFFD for bytes that are not UTF-8.

    Args:
        decode_bytes: token ids -> the bytes of their text: `Tokenizer.generated_bytes`.
        stop: texts that end the stream; they are not part of the text.
    """

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes], stop: Sequence[str] = ()):
        self._decode_bytes = decode_bytes
        self._stops = [text.encode("utf-8", "surrogatepass") for text in stop]
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes; may be "", and is always "" after a stop text."""
        if self.stopped:
            return ""
        self._held += self._decode_bytes([token])
        found = first_stop(self._held, self._stops)
        if found is not None:
            self.stopped = True
            return self._characters.decode(self._held[:found], final=True)
        ready = len(self._held) - self._begun()
        shown, self._held = self._held[:ready], self._held[ready:]
        return self._characters.decode(shown)

    def finish(self) -> str:
        """The text of the bytes still held; call it once, after the last token."""
        if self.stopped:
            return ""
        held, self._held = self._held, b""
        return self._characters.decode(held, final=True)

    def _begun(self) -> int:
        """How many of the last bytes may be the beginning of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
