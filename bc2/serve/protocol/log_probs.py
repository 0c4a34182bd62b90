"""Log-probabilities of tokens as OpenAI writes them, for completions and for chats."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bc2.generate.requests import TokenLogProb
from bc2.serve.protocol.pieces import Piece

#: Token id -> the bytes of its text.
TokenText = Callable[[int], bytes]

#: What OpenAI writes for what cannot be: JSON has no minus infinity.
LEAST = -9999.0


def shown(data: bytes, prefix: str = "") -> str:
    r"""The text of a token, or ``\xe4\xb8`` for bytes that are no UTF-8.

    Args:
        prefix: of such bytes.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return prefix + "".join([f"\\x{byte:02x}" for byte in data])


class TextOffsets:
    """Where tokens begin in the text that all together are, in characters.

    A token that begins inside a character begins where that character does.

    Args:
        before: characters before the first token.
    """

    def __init__(self, before: int = 0):
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._before = before

    def push(self, data: bytes) -> int:
        """The place of the first byte of a token, after those that were pushed before."""
        if not data:
            return self._before
        self._before += len(self._characters.decode(data[:1]))
        # The first byte is in the last character: one that has ended, or that is awaited. Bytes
        # that can become none are awaited too, each as a character of its own.
        awaited = self._characters.getstate()[0].decode("utf-8", "replace")
        place = self._before + len(awaited) - 1
        self._before += len(self._characters.decode(data[1:]))
        return place


class CompletionLogProbs:
    """Log-probabilities of one answer of a completion, as it grows.

    Args:
        token_text: of the model.
        top: the most likely tokens in place of each that were asked for.
    """

    def __init__(self, token_text: TokenText, top: int):
        self._token_text = token_text
        self._top = top
        self._offsets = TextOffsets()

    def added(self, pieces: Iterable[Piece]) -> dict[str, list[Any]]:
        """Those of the tokens of pieces that are added: four lists of one length.

        The first token of a text has none, as nothing predicts it.
        """
        made: dict[str, list[Any]] = {
            "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
        }  # fmt: skip
        for piece in pieces:
            made["text_offset"] += self._places(piece)
            for token, number in tokens_of([piece]):
                made["tokens"].append(self._shown(token))
                made["token_logprobs"].append(None if number is None else finite(number.raw))
                likeliest = None if number is None else self._likeliest(token, number)
                made["top_logprobs"].append(likeliest)
        return made

    def _places(self, piece: Piece) -> list[int]:
        """Where the tokens of a piece begin; an echoed prompt is a text of its own."""
        texts = [self._token_text(token) for token in piece.ids]
        if not piece.echoed:
            return [self._offsets.push(data) for data in texts]
        self._offsets = TextOffsets(len(piece.text))
        # Some tokenizers put a space before a text, which is in the first token alone.
        extra = b"".join(texts).decode(errors="replace") == f" {piece.text}"
        prompt = TextOffsets(-extra)
        return [max(0, prompt.push(data)) for data in texts]

    def _likeliest(self, token: int, number: TokenLogProb) -> dict[str, float]:
        """Texts of the likeliest tokens and of the one that is there.

        Tokens of one text have one place; the likeliest has it. The one that is there has the
        same number as among `token_logprobs`, by which lm-eval knows that it is the likeliest.
        """
        likeliest: dict[str, float] = {}
        for other, value in (*number.top[: self._top], (token, number.raw)):
            log_prob = number.raw if other == token else value
            likeliest.setdefault(self._shown(other), finite(log_prob))
        return likeliest

    def _shown(self, token: int) -> str:
        return shown(self._token_text(token), "bytes:")


def chat_log_probs(
    tokens: Iterable[tuple[int, TokenLogProb | None]], token_text: TokenText, top: int
) -> list[dict[str, Any]]:
    """Log-probabilities of tokens of an answer in a chat.

    Args:
        top: the most likely tokens in place of each that were asked for.
    """
    return [
        _entry(token_text(token), number.raw)
        | {"top_logprobs": [_entry(token_text(i), value) for i, value in number.top[:top]]}
        for token, number in tokens
        if number is not None
    ]


def tokens_of(pieces: Iterable[Piece]) -> Iterator[tuple[int, TokenLogProb | None]]:
    """The tokens of pieces with their log-probabilities, which must be there."""
    for piece in pieces:
        yield from zip(piece.ids, piece.log_probs or (), strict=True)


def finite(log_prob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(log_prob, LEAST)


def _entry(data: bytes, log_prob: float) -> dict[str, Any]:
    return {"token": shown(data), "logprob": finite(log_prob), "bytes": list(data)}
