"""What is asked of a model, and what it answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bc2.generate.sampling_config import SamplingConfig


FinishReason = Literal["stop_id", "stop", "length", "cancelled"]


def _default_settings() -> SamplingConfig:
    # Imported here: the engine itself needs no pydantic.
    from bc2.generate.sampling_config import SamplingConfig

    return SamplingConfig()


@dataclass(frozen=True)
class Request:
    """A prompt to continue."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    settings: SamplingConfig = field(default_factory=_default_settings)
    where: str | None = None
    """Names it in errors, such as ``prompts.jsonl:7``; None: its number."""


@dataclass(frozen=True)
class TokenLogProb:
    """Log-probabilities, in nats, of a token of the output."""

    raw: float
    """Under the model: temperature 1, nothing penalised or left out."""
    drawn: float
    """Under the distribution that it was drawn from; 0 for greedy output."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens under the model, with their raw log-probabilities, descending."""


@dataclass(frozen=True)
class Continuation:
    """One continuation of a prompt."""

    ids: list[int]
    """The new tokens without one that ended the output, up to the one that completed a stop
    text."""
    finish_reason: FinishReason
    """"stop_id": a token of `stop_ids`, such as the end of text; "stop": a stop text; "length":
    `max_new_tokens`, or the end of the model's context; "cancelled": `cancel` was called."""
    data: bytes | None = None
    """The bytes of the new tokens before a stop text; None without a tokenizer."""
    log_probs: list[TokenLogProb] | None = None
    """Of each of `ids`; None unless `logprobs` was set."""
    end_log_prob: TokenLogProb | None = None
    """Of the stop id that ended the output, if one did and `logprobs` was set."""
    stop_id: int | None = None
    """The token of `stop_ids` that ended the output, if one did."""


@dataclass(frozen=True)
class Generated:
    """The answer to a `Request`."""

    index: int
    """The number of the request, in the order of submission."""
    request: Request
    continuations: list[Continuation]
    """`n` of them."""
    version: int
    """The version of the weights: see `InferenceEngine.refresh`."""
    shared_tokens: int = 0
    """Tokens of the prompt whose keys were in the cache already."""


@dataclass(frozen=True)
class ScoreRequest:
    """A text whose tokens' log-probabilities are wanted after a context."""

    context: Sequence[int]
    """Token ids, at least one; the first token of the continuation is predicted from it."""
    continuation: Sequence[int]
    """Token ids, at least one."""
    where: str | None = None
    """Names it in errors; None: its number."""


@dataclass(frozen=True)
class Score:
    """The answer to a `ScoreRequest`: one number for each token of the continuation."""

    index: int
    """The number of the request, in the order in which they were read."""
    log_probs: list[float]
    """In nats."""
    greedy: list[bool]
    """Whether the token is the likeliest; of equally likely tokens the lowest id is."""
    cut: int
    """Tokens cut from the left of the context because all did not fit into the model's window."""
    version: int
    """The version of the weights."""
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    """The likeliest tokens in place of each token, with log-probabilities, descending; empty
    unless they were asked for."""

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return sum(self.log_probs)

    @property
    def all_greedy(self) -> bool:
        """Whether the continuation is what greedy decoding would write."""
        return all(self.greedy)
