"""Replies to completions and chats, whole or as the events of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import orjson

from bc2.serve.protocol.log_probs import CompletionLogProbs, TokenText, chat_log_probs, tokens_of
from bc2.serve.protocol.pieces import Piece, Usage
from bc2.serve.protocol.requests import ChatRequest, CompletionRequest, SamplingBody

#: The event that ends every stream.
DONE = b"data: [DONE]\n\n"

Asked = TypeVar("Asked", bound=SamplingBody)


def event(data: dict[str, Any]) -> bytes:
    """An event of a stream (server-sent events)."""
    return b"data: %b\n\n" % orjson.dumps(data)


@dataclass
class Reply(ABC, Generic[Asked]):
    """The reply to one request: `whole`, or a `chunk` for each piece of its choices.

    The choices of a request are numbered prompt by prompt, `n` each.
    """

    kind: ClassVar[str]
    """OpenAI's name of a whole reply."""
    chunk_kind: ClassVar[str]
    """And of an event of a stream."""

    asked: Asked
    _: KW_ONLY
    model: str
    """The name that it was served by."""
    id: str
    created: int
    """Seconds since 1970."""
    token_text: TokenText
    """Token id -> the bytes of its text."""
    prompt_ids: Sequence[Sequence[int]] = ()
    """The tokens of each prompt, for a request that asks for token ids."""
    _begun: set[int] = field(init=False, default_factory=set)
    """Choices that a stream has said something of."""

    def whole(self, choices: Sequence[Sequence[Piece]], usage: Usage) -> dict[str, Any]:
        """The reply that has everything: all pieces of each choice, at least one of each."""
        made = [self._choice(index, pieces) for index, pieces in enumerate(choices)]
        return {**self._head(self.kind), "choices": made, "usage": usage.to_json()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """What a stream says of a piece of a choice; the pieces of a choice come in their order.

        Args:
            index: of the choice.
        """
        first = index not in self._begun
        self._begun.add(index)
        usage = {"usage": None} if self.asked.include_usage else {}
        part = self._part(index, piece, first=first)
        return {**self._head(self.chunk_kind), "choices": [part], **usage}

    def chunk_bytes(self, index: int, piece: Piece) -> bytes:
        """The event of a `chunk`."""
        return event(self.chunk(index, piece))

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """What a stream ends with that was asked for its usage."""
        return {**self._head(self.chunk_kind), "choices": [], "usage": usage.to_json()}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @abstractmethod
    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A choice of a whole reply."""

    @abstractmethod
    def _part(self, index: int, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A choice of a chunk; `first` of the choice."""

    def _token_ids(self, index: int, pieces: Iterable[Piece], *, first: bool) -> dict[str, Any]:
        """The ids of a choice, or of a part of it, if they were asked for."""
        if not self.asked.return_token_ids:
            return {}
        ids = [token for piece in pieces if not piece.echoed for token in piece.ids]
        prompt = {"prompt_token_ids": list(self.prompt_ids[index // self.asked.n])}
        return {**(prompt if first else {}), "token_ids": ids}


@dataclass
class CompletionReply(Reply[CompletionRequest]):
    """The reply to a completion; an echoed prompt is the first piece of its choices."""

    kind = chunk_kind = "text_completion"

    _log_probs: dict[int, CompletionLogProbs] = field(init=False, default_factory=dict)
    """Of each choice, if they are asked for."""

    def _choice(self, index: int, pieces: Sequence[Piece], *, first: bool = True) -> dict[str, Any]:
        return {
            "index": index,
            "text": "".join([piece.text for piece in pieces]),
            "logprobs": self._said(index, pieces),
            "finish_reason": pieces[-1].finish_reason,
            **self._token_ids(index, pieces, first=first),
        }

    def _part(self, index: int, piece: Piece, *, first: bool) -> dict[str, Any]:
        return self._choice(index, (piece,), first=first)

    def _said(self, index: int, pieces: Iterable[Piece]) -> dict[str, list[Any]] | None:
        """The log-probabilities of pieces, after those of the same choice before."""
        if self.asked.logprobs is None:
            return None
        if index not in self._log_probs:
            self._log_probs[index] = CompletionLogProbs(self.token_text, self.asked.logprobs)
        return self._log_probs[index].added(pieces)


@dataclass
class ChatReply(Reply[ChatRequest]):
    """The reply to a chat."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def _choice(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        text = "".join([piece.text for piece in pieces])
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._said(pieces),
            "finish_reason": pieces[-1].finish_reason,
            **self._token_ids(index, pieces, first=True),
        }

    def _part(self, index: int, piece: Piece, *, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        return {
            "index": index,
            "delta": {**role, "content": piece.text},
            "logprobs": self._said((piece,)),
            "finish_reason": piece.finish_reason,
            **self._token_ids(index, (piece,), first=first),
        }

    def _said(self, pieces: Iterable[Piece]) -> dict[str, Any] | None:
        top = self.asked.top_count
        if top is None:
            return None
        found = chat_log_probs(tokens_of(pieces), self.token_text, top)
        return {"content": found, "refusal": None}
