"""What an engine's events add to the choices of a reply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from bc2.generate.text import TextStream
from bc2.serve.protocol.pieces import Piece
from bc2.serve.ticket import Ended, NewToken

if TYPE_CHECKING:
    from bc2.generate.requests import Continuation

#: The reasons of OpenAI.
_REASONS: dict[str, Literal["stop", "length"]] = {
    "stop_id": "stop",
    "stop": "stop",
    "length": "length",
}


def whole(made: Continuation) -> Piece:
    """A finished continuation as one piece."""
    text = (made.data or b"").decode("utf-8", "replace")
    return Piece(text, made.ids, made.log_probs, _REASONS[made.finish_reason])


class GrowingChoices:
    """The continuations of one request as they grow.

    Args:
        decode_bytes: see `TextStream`.
        stop: texts that end them.
        count: how many there are.
    """

    def __init__(
        self, decode_bytes: Callable[[Sequence[int]], bytes], stop: Sequence[str], count: int
    ):
        self._texts = [TextStream(decode_bytes, stop) for _ in range(count)]

    def grown(self, tokens: Sequence[NewToken]) -> Iterator[tuple[int, Piece]]:
        """What new tokens add to each continuation that has some."""
        for choice in dict.fromkeys(token.choice for token in tokens):
            own = [token for token in tokens if token.choice == choice]
            text = "".join([self._texts[choice].push(token.token) for token in own])
            numbers = [token.log_prob for token in own]
            yield choice, Piece(text, [token.token for token in own], numbers)

    def ended(self, end: Ended) -> Piece:
        """The last piece of a continuation."""
        return Piece(self._texts[end.choice].finish(), (), (), _REASONS[end.reason])
