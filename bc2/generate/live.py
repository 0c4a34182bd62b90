"""A sequence that is being continued. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bc2.generate.requests import Continuation, FinishReason, Request, TokenLogProb
from bc2.generate.sampling.seeds import sequence_key
from bc2.generate.text import first_stop

#: Token ids -> the bytes of their text: `Tokenizer.generated_bytes`.
DecodeBytes = Callable[[Sequence[int]], bytes]


@dataclass(eq=False)
class Live:
    """One continuation of a prompt, and what the cache holds of it."""

    index: int
    """The number of its request."""
    number: int
    """Of the continuation among the request's `n`."""
    request: Request
    decode_bytes: DecodeBytes | None
    ids: list[int] = field(init=False)
    """The prompt and the new tokens."""
    blocks: list[int] = field(default_factory=list)
    read: int = 0
    """Tokens whose keys are in the blocks, or will be after the running pass."""
    known: int = 0
    """Full blocks that others can find; -1 once another block was known for the same tokens."""
    shared: int = 0
    """Tokens of the prompt that were in the cache when it was first read."""
    forks: list[Live] = field(default_factory=list)
    """Continuations of the same prompt that wait until it has been read."""
    reason: FinishReason | None = None
    log_probs: list[TokenLogProb] = field(default_factory=list)
    end: TokenLogProb | None = None
    stop_id: int | None = None

    def __post_init__(self) -> None:
        settings = self.request.settings
        self.ids = list(self.request.prompt)
        self.key = sequence_key(settings.seed, self.number)
        self._text = bytearray()
        self._stops = [text.encode("utf-8", "surrogatepass") for text in settings.stop]
        self._found: int | None = None
        self._penalized = settings.repetition_penalty != 1
        self._seen = dict.fromkeys(self.ids) if self._penalized else {}

    @property
    def new(self) -> int:
        """New tokens so far."""
        return len(self.ids) - len(self.request.prompt)

    @property
    def unread(self) -> int:
        return len(self.ids) - self.read

    @property
    def seen(self) -> Sequence[int]:
        """Its distinct tokens, where they are penalised."""
        return list(self._seen)

    def push(self, token: int, stop_ids: Sequence[int], context: int) -> bool:
        """Append a token and see whether it ends the sequence.

        Args:
            stop_ids: tokens that end it, and are not appended.
            context: the most tokens that the model reads.

        Returns:
            Whether it was appended.
        """
        if token in stop_ids:
            self.reason, self.stop_id = "stop_id", token
            return False
        self.ids.append(token)
        if self._penalized:
            self._seen[token] = None
        if self._stops and self._stopped(token):
            self.reason = "stop"
        elif self.new >= self.request.settings.max_new_tokens or len(self.ids) > context:
            # The context is full: this token was the last that could be predicted.
            self.reason = "length"
        return True

    def _stopped(self, token: int) -> bool:
        assert self.decode_bytes is not None
        before = len(self._text)
        self._text += self.decode_bytes([token])
        # Only the new bytes can complete a stop text.
        start = max(0, before - max(map(len, self._stops)) + 1)
        self._found = first_stop(self._text, self._stops, start)
        return self._found is not None

    def result(self) -> Continuation:
        """The finished continuation."""
        assert self.reason is not None
        ids = self.ids[len(self.request.prompt) :]
        data = None
        if self.decode_bytes is not None:
            data = self.decode_bytes(ids)[: self._found]
        wanted = self.request.settings.logprobs is not None
        log_probs = self.log_probs if wanted else None
        return Continuation(ids, self.reason, data, log_probs, self.end, self.stop_id)
