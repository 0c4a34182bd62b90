"""One engine for evaluation, chat, serving and reinforcement learning: score, and generate.

Greedy output depends on the prompt and the model alone, and so does drawn output in fp32 (with its
settings): companions, order, preemption and the size of the cache change nothing. In 16 bits drawn
output is repeatable for the same submissions and cache. `bc2.generate.near_ties` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from bc2.errors import Bc2Error, UsageError
from bc2.free_memory import device_available
from bc2.generate.cache.memory import Memory, block_bytes
from bc2.generate.live import DecodeBytes
from bc2.generate.near_ties import NearTies
from bc2.generate.requests import Generated, Request, Score, ScoreRequest
from bc2.generate.runner import ModelRunner
from bc2.generate.score import Scorer
from bc2.generate.session import Session
from bc2.generate.stats import EngineStats
from bc2.model.transformer import Transformer

if TYPE_CHECKING:
    from bc2.generate.engine_config import EngineConfig

#: The part of free memory that the cache takes where its size is not set.
FREE_SHARE = 0.5

#: ``on_token(number of the request, of its continuation, token id)``.
OnToken = Callable[[int, int, int], None]


class InferenceEngine:
    """Answers requests with a model's weights, wherever these are; it makes no copy of them.

    Args:
        model: a model, or a runner of one that is on several ranks; then every rank makes an
            engine and gives it the same requests.
        eos_id: the end-of-text token, which ends a continuation by default.
        decode_bytes: `Tokenizer.generated_bytes`; needed for stop texts.
        poison: see `KVCache`.

    Raises:
        UsageError: `cache_bytes` is too small for one block.
    """

    def __init__(
        self,
        model: Transformer | ModelRunner,
        config: EngineConfig | None = None,
        *,
        eos_id: int,
        decode_bytes: DecodeBytes | None = None,
        poison: bool = False,
    ):
        self.runner = model if isinstance(model, ModelRunner) else ModelRunner(model)
        self.config = config or _default_config()
        self.stats = EngineStats()
        self.version = 0
        self._eos_id = eos_id
        self._decode_bytes = decode_bytes
        self._poison = poison
        self.memory = self._make_memory(self.runner.dtype, self._cache_bytes())
        self._session: Session | None = None
        self._near_ties = NearTies(self.runner, self._wide_memory, self.config.step_tokens)

    @property
    def cache_tokens(self) -> int:
        """The most tokens whose keys and values are held."""
        return self.memory.pool.blocks * self.memory.pool.size

    def refresh(self, version: int) -> None:
        """Tell that the weights have changed; what was cached with the old ones is forgotten.

        Raises:
            RuntimeError: a session has unanswered requests, part of which the old weights read.
        """
        if self._session is not None and not self._session.idle:
            raise RuntimeError("the weights changed while requests were being answered")
        self.version = version
        if self._session is not None:
            self._session.version = version
        self.runner.refresh()
        self._near_ties.refresh()
        self.memory.forget_all()

    @contextmanager
    def open(self) -> Iterator[Session]:
        """A session to submit requests to, and to answer step by step.

        Raises:
            RuntimeError: another one is open.
        """
        if self._session is not None:
            raise RuntimeError("the engine answers one set of requests at a time")
        self._session = session = Session(
            self.runner,
            self.memory,
            self.config,
            self._near_ties,
            self.stats,
            eos_id=self._eos_id,
            decode_bytes=self._decode_bytes,
            version=self.version,
        )
        try:
            yield session
        finally:
            session.close()
            self._session = None

    def generate(
        self,
        requests: Iterable[Request],
        *,
        in_order: bool = True,
        on_token: OnToken | None = None,
    ) -> Iterator[Generated]:
        """Continue prompts.

        Requests are read as there is room for them, and nothing cached before is used, so that
        the bits of the answers follow from the requests alone. A request that is refused, or
        cannot be read, is the last one; its error comes after the answers to those before it.

        Args:
            in_order: yield answers in the order of requests; else as they are completed.
            on_token: called with each token of an answer as soon as it is chosen.

        Raises:
            DataError, UsageError: see `Session.submit`; and what `requests` raise.
        """
        coming = iter(requests)
        more = True
        refused: Bc2Error | None = None
        held: dict[int, Generated] = {}
        next_index = 0
        with self.open() as session:
            self.memory.forget_all()
            while more or not session.idle:
                while more and session.hungry:
                    try:
                        request = next(coming, None)
                        if request is not None:
                            session.submit(request)
                    except Bc2Error as error:
                        refused, request = error, None
                    more = request is not None
                session.step()
                if on_token is not None:
                    for live, token in session.tokens:
                        on_token(live.index, live.number, token)
                for answer in session.finished():
                    if not in_order:
                        yield answer
                        continue
                    held[answer.index] = answer
                    while next_index in held:
                        yield held.pop(next_index)
                        next_index += 1
        if refused is not None:
            raise refused

    def score(
        self,
        requests: Iterable[ScoreRequest],
        *,
        top_k: int = 0,
        cut: bool = False,
        share: bool = True,
    ) -> Iterator[Score]:
        """Log-probabilities of continuations, in the order of the requests.

        A request that is refused, or cannot be read, is the last one; its error comes after the
        answers to those before it.

        Args:
            top_k: report this many likeliest tokens in each place.
            cut: cut contexts from the left where a text is longer than the model's window, and
                count what was cut; else such a text is an error.
            share: compute common beginnings of texts once.

        Raises:
            DataError: a context or continuation is empty, has an id outside the vocabulary, or is
                too long.
            RunFailed: the model's logits are not numbers.
            UsageError: `top_k` exceeds the vocabulary.
        """
        self.memory.forget_all()
        scorer = Scorer(self.runner, self.memory, self.config, self.stats, lambda: self.version)
        yield from scorer.scores(requests, top_k=top_k, cut=cut, share=share)

    def score_passes(
        self, requests: Sequence[ScoreRequest], *, top_k: int = 0
    ) -> Iterator[list[Score]]:
        """Log-probabilities of texts beside an open session, a forward pass at a time.

        What is cached is used, and kept for later requests of either kind. Between two passes the
        session may make its steps.

        Raises:
            DataError, RunFailed, UsageError: see `score`; those of requests before any pass.
        """
        version = self.version
        scorer = Scorer(
            self.runner, self.memory, self.config, self.stats, lambda: version, keep=True
        )
        return scorer.passes(requests, top_k=top_k)

    def _cache_bytes(self) -> int:
        if self.config.cache_bytes is not None:
            return self.config.cache_bytes
        return int(device_available(self.runner.device) * FREE_SHARE)

    def _make_memory(self, dtype: torch.dtype, size: int) -> Memory:
        model, heads = self.runner.config, self.runner.key_heads
        each = block_bytes(model, heads, self.config.block_tokens, dtype)
        if size < each:
            raise UsageError(
                f"a cache of {size:,} bytes holds no block of {self.config.block_tokens} tokens",
                todo=f"give it at least {each:,} bytes",
            )
        blocks = size // each
        if self.config.cache_bytes is None:
            # All sequences that may run at once, each of full length, and as much again to keep.
            whole = -(-model.context_length // self.config.block_tokens)
            blocks = min(blocks, 2 * self.config.most_running * whole)
        return Memory.of(
            model,
            heads,
            blocks,
            self.config.block_tokens,
            dtype,
            self.runner.device,
            most_idle=int(blocks * self.config.idle_share),
            poison=self._poison,
        )

    def _wide_memory(self) -> Memory:
        """A cache in fp32 of the size of the engine's own of a 16-bit model, or of half of it.

        Its size changes no choice: sequences that do not fit are read without it.
        """
        held = self.memory.cache.data
        # Where the size is not set, the engine's own may be half of what was free.
        size = held.nbytes if self.config.cache_bytes is not None else held.nbytes // 2
        least = held[:, :, 0].numel() * torch.float32.itemsize
        return self._make_memory(torch.float32, max(size, least))


def _default_config() -> EngineConfig:
    # Imported here: the engine itself needs no pydantic.
    from bc2.generate.engine_config import EngineConfig

    return EngineConfig()
