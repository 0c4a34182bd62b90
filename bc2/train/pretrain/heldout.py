"""What a run measures on held-out text: the loss, and how the model continues its beginnings."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bc2.data.loader import Batch, heldout_batches, read_ahead
from bc2.data.shards import TokenShards
from bc2.errors import RunFailed
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.train.continuations import continuations
from bc2.train.engines.base import Engine
from bc2.train.measured import Measured
from bc2.train.objective import Objective
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import TokenInputs
from bc2.train.stream import with_timeout

#: Tokens of a held-out document that the model is given to continue.
PROMPT_TOKENS = 32

#: Batches read ahead.
_AHEAD = 4

#: Tokens looked at once for the beginning of a document.
_SCAN = 4096


@dataclass(frozen=True)
class Heldout:
    """Evaluations of the model that an engine trains."""

    engine: Engine
    objective: Objective
    shards: TokenShards
    tokenizer: Tokenizer
    sequence_length: int
    micro_batch: int
    tokens: int
    """At most this many are read for the loss, and at least one window."""
    prompts: int
    """Documents whose beginnings are continued."""
    new_tokens: int
    """At most this many tokens are added to each."""
    timeout_s: float
    """The longest wait for a batch."""
    check: Callable[[], None]
    """Called between batches and tokens; if it raises, the evaluation is abandoned."""

    @classmethod
    def of(
        cls,
        config: PretrainConfig,
        data: TokenInputs,
        engine: Engine,
        objective: Objective,
        check: Callable[[], None],
    ) -> Heldout:
        """The evaluations of a run."""
        return cls(
            engine,
            objective,
            data.shards,
            Tokenizer.load(data.tokenizer),
            sequence_length=config.sequence_length,
            micro_batch=config.micro_sequences,
            tokens=config.eval_tokens,
            prompts=config.sample_prompts,
            new_tokens=config.sample_tokens,
            timeout_s=config.data_timeout_s,
            check=check,
        )

    def __call__(self) -> Measured:
        """Evaluate the training-precision model; a function of its weights alone.

        Of facts there are those of `heldout_loss`; of samples, greedy continuations.
        """
        # Counted in windows: which ones are read must not depend on the micro-batch.
        most = max(1, self.tokens // self.sequence_length)
        batches = heldout_batches(self.shards, self.sequence_length, self.micro_batch, most=most)
        windows = WindowsDigest()
        with read_ahead(map(windows.add, batches), _AHEAD) as ready:
            patient = with_timeout(ready, self.timeout_s, self.check)
            facts = heldout_loss(self.engine, self.objective, patient, self.tokenizer.piece_bytes)
        # Logits that are not finite have no likeliest token.
        broken = not math.isfinite(facts["heldout_loss"])
        samples = [] if broken else self._samples()
        loss, bits = facts["heldout_loss"], facts["bits_per_byte"]
        text = f"held-out loss {loss:.4f} nats/token, {bits:.4f} bits/byte"
        # Which held-out tokens were read: losses compare where that is equal.
        return Measured(facts, text, samples, {"heldout_sha256": windows.hex})

    def _samples(self) -> list[dict[str, str]]:
        """Beginnings of held-out documents, and how the model goes on."""
        prompts = openings(self.shards, self.prompts, min(PROMPT_TOKENS, self.sequence_length))
        made = continuations(
            self.engine, prompts, self.new_tokens, (self.shards.eos_id,), self.check
        )
        return [
            {"prompt": self._text(prompt), "text": self._text(new)}
            for prompt, new in zip(prompts, made, strict=bool(made))
        ]

    def _text(self, ids: list[int]) -> str:
        """The text of ids; U+FFFD for bytes that are no text, and for ids that no piece has."""
        return self.tokenizer.generated_bytes(ids).decode("utf-8", "replace")


class WindowsDigest:
    """The SHA-256 of held-out windows: tokens and labels of each, int64, in their order.

    It follows from the shards, the sequence length and the number of windows alone: how these
    are batched, and which rank takes which, changes nothing. Losses compare where it is equal.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def add(self, batch: Batch) -> Batch:
        """Digest the windows of the next batch, and hand it on."""
        pairs = np.stack([batch.tokens, batch.labels], axis=1)  # [R, 2, S]
        self._sha256.update(pairs.astype("<i8", copy=False).tobytes())
        return batch

    @property
    def hex(self) -> str:
        return self._sha256.hexdigest()


def heldout_loss(
    engine: Engine,
    objective: Objective,
    batches: Iterator[Batch],
    piece_bytes: np.ndarray[Any, np.dtype[np.int32]],
) -> dict[str, float]:
    """Held-out cross-entropy of the training-precision model.

    Every rank is given all batches; data-parallel ranks take turns with them.

    Returns:
        ``heldout_loss`` in nats a token, ``bits_per_byte`` over the bytes of the predicted
        tokens (an end of document has none), ``heldout_tokens``.
    """
    data = engine.mesh.data
    nats, tokens, size = 0.0, 0, 0
    while turn := list(itertools.islice(batches, data.size)):
        mine = data.rank < len(turn)
        # Ranks that share weights must all run the model: one without a batch repeats the last.
        batch = turn[data.rank if mine else -1]
        sums = engine.evaluate(objective, batch)
        if mine:
            labels = batch.labels[batch.labels >= 0]
            nats += sums["ce"]
            tokens += len(labels)
            size += int(piece_bytes[labels].sum())
    each = data.all_gather_object((nats, tokens, size))
    nats, tokens, size = sum(e[0] for e in each), sum(e[1] for e in each), sum(e[2] for e in each)
    if not tokens or not size:
        raise RunFailed("the held-out split has no token to predict", todo="set eval_tokens = 0")
    return {
        "heldout_loss": nats / tokens,
        "bits_per_byte": nats / size / math.log(2),
        "heldout_tokens": tokens,
    }


def openings(shards: TokenShards, count: int, length: int) -> list[list[int]]:
    """The first `length` tokens of `count` held-out documents, or all of a shorter one.

    The sources take turns, and within one the documents are spread over its length.
    Fewer than `count` if a source has no document with text where one is looked for.
    """
    sources = shards.in_turns("heldout")
    found = []
    for number in range(count):
        source = sources[number % len(sources)]
        turns = len(range(number % len(sources), count, len(sources)))
        tokens = shards.num_tokens("heldout", source)
        near = tokens * (number // len(sources)) // turns
        opening = _opening(shards, source, near, length) or _opening(shards, source, 0, length)
        if opening:
            found.append(opening)
    return found


def _opening(shards: TokenShards, source: str, near: int, length: int) -> list[int]:
    """The beginning of the first document that begins at `near` or later; [] if none does."""
    tokens = shards.num_tokens("heldout", source)
    start = _document(shards, source, near) if near else 0
    while start < tokens:
        ids: list[int] = shards.window(
            "heldout", source, start, min(length, tokens - start)
        ).tolist()
        text = ids[: ids.index(shards.eos_id)] if shards.eos_id in ids else ids
        if text:
            return text
        start += 1  # an empty document
    return []


def _document(shards: TokenShards, source: str, near: int) -> int:
    """Where the first document at `near` or later begins; the source's end if none does."""
    tokens = shards.num_tokens("heldout", source)
    for at in range(near - 1, tokens, _SCAN):
        window = shards.window("heldout", source, at, min(_SCAN, tokens - at))
        ends = np.flatnonzero(window == shards.eos_id)
        if ends.size:
            return at + int(ends[0]) + 1
    return tokens
