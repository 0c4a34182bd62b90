"""A model that answers one prompt after another in one session, so that its cache stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bc2.generate.requests import Continuation, Request
from bc2.generate.text import TextStream

if TYPE_CHECKING:
    from bc2.generate.live import DecodeBytes
    from bc2.generate.sampling_config import SamplingConfig
    from bc2.generate.session import Session


class Speaker:
    """Answers in an open session of the engine.

    A prompt that begins as an earlier one, with its answer, finds the keys of that in the cache.

    Args:
        decode_bytes: of the layout.
    """

    def __init__(self, session: Session, decode_bytes: DecodeBytes):
        self.stats = session.stats
        #: Set to end the running answer, or the next one, after its next token.
        self.stopped = False
        self._session = session
        self._decode_bytes = decode_bytes

    def answer(
        self, prompt: Sequence[int], settings: SamplingConfig, show: Callable[[str], None]
    ) -> Continuation:
        """Continue a prompt.

        Args:
            show: called with each piece of text as it is there, whole characters only.

        Raises:
            DataError, UsageError: see `Session.submit`.
        """
        stream = TextStream(self._decode_bytes, settings.stop)
        number = self._session.submit(Request(prompt, settings, "the conversation"))
        found: list[Continuation] = []
        while not found:
            self._session.step()
            for _, token in self._session.tokens:
                _give(stream.push(token), show)
            if self.stopped:
                self._session.cancel(number)
            found = [one.continuations[0] for one in self._session.finished()]
        self.stopped = False
        _give(stream.finish(), show)
        return found[0]


def _give(text: str, show: Callable[[str], None]) -> None:
    if text:
        show(text)
