"""Batched generation with a key-value cache.

Greedy output depends on the prompt and the model alone: the other prompts of a batch, their
order and the cache do not change it (`bc2.generate.near_ties` says how). With sampling, each
prompt has a random generator of its own.

Shapes:
    B  sequences still running      T  tokens that they have not read      D  hidden size
    V  vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.errors import DataError, UsageError
from bc2.generate.near_ties import settle, tolerance
from bc2.generate.sampling import prompt_generator, sample
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.cache import KVCache
from bc2.model.transformer import Transformer

FinishReason = Literal["eos", "stop", "length"]

#: ``(tokens int64 [T], cu_seqlens int32 [B+1], max_seqlen) -> logits [B, V]`` of the token after
#: each of B packed documents; the arguments are those of `Transformer`.
NextLogits = Callable[[Tensor, Tensor, int], Tensor]

#: ``on_token(index of the prompt, token id)``, called for every token but the end of text.
OnToken = Callable[[int, int], None]

#: Token ids -> the bytes of their text: `Tokenizer.decode_bytes`.
DecodeBytes = Callable[[Sequence[int]], bytes]


@dataclass(frozen=True)
class Generated:
    """The continuation of a prompt."""

    ids: list[int]
    """The new tokens without the end-of-text token, up to the one that completed a stop text."""

    finish_reason: FinishReason
    """"eos": the end-of-text token; "stop": a stop text; "length": `max_new_tokens`, or the end
    of the model's context."""

    data: bytes | None = None
    """The bytes of the new tokens before a stop text; None if no `decode_bytes` was given."""


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    *,
    eos_id: int,
    use_cache: bool = True,
    on_token: OnToken | None = None,
    decode_bytes: DecodeBytes | None = None,
    next_logits: NextLogits | None = None,
) -> list[Generated]:
    """Continue each prompt.

    Args:
        prompts: token ids, at least one in each prompt.
        eos_id: id of the end-of-text token.
        use_cache: keep keys and values of earlier tokens; without it, the whole prefix is
            computed again for every token.
        on_token: called with each token as soon as it is chosen, for streaming.
        decode_bytes: needed for `settings.stop`; fills `Generated.data`.
        next_logits: called instead of the model if its weights are on several ranks. The whole
            prefix is then computed again for every token, and the temperature must be above 0.

    Returns:
        A continuation of each prompt, in the order of the prompts.

    Raises:
        DataError: a prompt is empty, is too long for the context, or holds an id outside the
            model's vocabulary.
        UsageError: there are stop texts without `decode_bytes`, or one is empty.
    """
    _check(model, prompts, settings, decode_bytes)
    run = _Run(model, settings, eos_id, on_token, decode_bytes, next_logits)
    sequences = [
        _Sequence(index, list(prompt), len(prompt), prompt_generator(settings.seed, index))
        for index, prompt in enumerate(prompts)
    ]
    with torch.inference_mode():
        for start in range(0, len(sequences), settings.batch_size):
            run.finish(
                sequences[start : start + settings.batch_size], use_cache and not next_logits
            )
    return [run.result(sequence) for sequence in sequences]


def _check(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: SamplingConfig,
    decode_bytes: DecodeBytes | None,
) -> None:
    if settings.stop and decode_bytes is None:
        raise UsageError("stop texts need a tokenizer", todo="give decode_bytes")
    if "" in settings.stop:
        raise UsageError("a stop text is empty", todo="leave it out")
    limit, vocab_size = model.config.context_length, model.config.vocab_size
    for index, prompt in enumerate(prompts):
        where = f"prompt {index}"
        if not prompt:
            raise DataError("the prompt is empty", where=where, todo="begin with some text")
        if len(prompt) > limit:
            raise DataError(
                f"the prompt has {len(prompt)} tokens and the model reads {limit}",
                where=where,
                todo="shorten the prompt",
            )
        wrong = next((i for i in prompt if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"token id {wrong} is outside the model's vocabulary of {vocab_size}",
                where=where,
                todo="use the tokenizer that the model was trained with",
            )


@dataclass
class _Sequence:
    """A prompt and its continuation so far."""

    index: int
    ids: list[int]
    prompt_length: int
    generator: torch.Generator
    reason: FinishReason | None = None
    row: int = field(default=-1)
    """Its row in the cache of the running batch."""
    read: int = 0
    """Number of its tokens that the cache holds."""

    @property
    def new(self) -> list[int]:
        return self.ids[self.prompt_length :]


class _Run:
    """What stays the same for all tokens of one `generate` call."""

    def __init__(
        self,
        model: Transformer,
        settings: SamplingConfig,
        eos_id: int,
        on_token: OnToken | None,
        decode_bytes: DecodeBytes | None,
        next_logits: NextLogits | None,
    ):
        self.model = model
        self.settings = settings
        self.eos_id = eos_id
        self.on_token = on_token
        self.decode_bytes = decode_bytes
        self.next_logits = next_logits
        self.stops = [text.encode("utf-8", "surrogatepass") for text in settings.stop]
        self.device = model.lm_head.weight.device
        if next_logits is None:
            with torch.inference_mode():
                # NormHead's rows do not change from token to token.
                self.head = model.head_weight()
                self.longest_row = float(torch.linalg.vector_norm(self.head.float(), dim=1).max())

    def finish(self, batch: list[_Sequence], use_cache: bool) -> None:
        """Generate tokens until every sequence of a batch has ended."""
        cache = self._cache(batch) if use_cache else None
        running = batch
        while running:
            for sequence, token in zip(running, self._next(running, cache), strict=True):
                self._push(sequence, token)
            running = [sequence for sequence in running if sequence.reason is None]

    def result(self, sequence: _Sequence) -> Generated:
        assert sequence.reason is not None
        if self.decode_bytes is None:
            return Generated(sequence.new, sequence.reason)
        data = self.decode_bytes(sequence.new)
        found = [at for at in (data.find(stop) for stop in self.stops) if at >= 0]
        return Generated(sequence.new, sequence.reason, data[: min(found, default=len(data))])

    def _cache(self, batch: list[_Sequence]) -> KVCache:
        longest = max(len(sequence.ids) for sequence in batch)
        capacity = min(self.model.config.context_length, longest + self.settings.max_new_tokens)
        for row, sequence in enumerate(batch):
            sequence.row = row
        return KVCache(self.model.config, len(batch), capacity, self.head.dtype, self.head.device)

    def _next(self, running: list[_Sequence], cache: KVCache | None) -> list[int]:
        """Run the model on the tokens not read yet, and choose each sequence's next token."""
        if cache is not None:
            cache.select([sequence.row for sequence in running])
        unread = [sequence.ids[sequence.read :] for sequence in running]
        tokens = torch.tensor([i for ids in unread for i in ids], device=self.device)
        lengths = torch.tensor([0, *map(len, unread)], device=self.device)
        cu_seqlens, max_seqlen = lengths.cumsum(0, dtype=torch.int32), max(map(len, unread))
        if self.next_logits is not None:
            return self._draw(running, self.next_logits(tokens, cu_seqlens, max_seqlen))
        hidden: Tensor = self.model(tokens, cu_seqlens, max_seqlen, cache)[
            cu_seqlens[1:].long() - 1
        ]
        if cache is not None:
            for sequence in running:
                sequence.read = len(sequence.ids)
        logits = F.linear(hidden, self.head)
        if self.settings.temperature > 0:
            return self._draw(running, logits)
        return self._likeliest(running, hidden, logits)

    def _draw(self, running: list[_Sequence], logits: Tensor) -> list[int]:
        generators = [sequence.generator for sequence in running]
        drawn: list[int] = sample(logits, self.settings, generators).tolist()
        return drawn

    def _likeliest(self, running: list[_Sequence], hidden: Tensor, logits: Tensor) -> list[int]:
        top = logits.amax(dim=-1)
        floor = top.double() - tolerance(self.model, hidden, self.longest_row, top)
        near = logits.double() >= floor[:, None]
        return [
            settle(
                self.model,
                torch.tensor(sequence.ids, device=logits.device),
                near[row].nonzero()[:, 0].tolist(),
            )
            for row, sequence in enumerate(running)
        ]

    def _push(self, sequence: _Sequence, token: int) -> None:
        """Append a token, and see whether it ends the sequence."""
        if token == self.eos_id:
            sequence.reason = "eos"
            return
        sequence.ids.append(token)
        if self.on_token is not None:
            self.on_token(sequence.index, token)
        if self._is_stopped(sequence):
            sequence.reason = "stop"
        elif (
            len(sequence.new) >= self.settings.max_new_tokens
            # The context is full: this token was the last that could be predicted.
            or len(sequence.ids) > self.model.config.context_length
        ):
            sequence.reason = "length"

    def _is_stopped(self, sequence: _Sequence) -> bool:
        if not self.stops or self.decode_bytes is None:
            return False
        # Only the newest token can complete a stop text, so only the last bytes are searched.
        # Every token but a control token has at least one byte.
        longest = max(map(len, self.stops))
        new = sequence.new
        size = longest
        tail = self.decode_bytes(new[-size:])
        while len(tail) < longest and size < len(new):
            size *= 2
            tail = self.decode_bytes(new[-size:])
        return any(stop in tail for stop in self.stops)
