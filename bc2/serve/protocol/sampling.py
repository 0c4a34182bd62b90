"""What a request is sampled with: what it asks, then the model's own settings, then OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bc2.generate.sampling_config import SamplingConfig
from bc2.serve.protocol.requests import ChatRequest, CompletionRequest

#: Of both names alike.
_ALIKE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_of(
    asked: CompletionRequest | ChatRequest,
    own: Mapping[str, Any],
    ends: tuple[int, ...],
    room: int,
    *,
    seed: int,
) -> SamplingConfig:
    """The settings of a request's answers.

    An answer of a chat that may be of any length has the model's own most tokens, as far as the
    window has room for them; OpenAI ends a completion after 16.

    Args:
        asked: it asks for at least one token.
        own: settings of the model for `SamplingConfig`, of its ``generation.json``.
        ends: the tokens that end an answer of the model.
        room: tokens of the window that the prompt leaves, at least one.
        seed: for a request without one.
    """
    given = {name: getattr(asked, name) for name in _ALIKE}
    chosen = {**own, **{name: value for name, value in given.items() if value is not None}}
    stop_ids = (*(() if asked.ignore_eos else ends), *asked.stop_token_ids)
    chosen |= {
        "n": asked.n,
        "max_new_tokens": min(_most_tokens(asked, own, room), room),
        "seed": seed if asked.seed is None else asked.seed,
        "stop": tuple(asked.stop),
        "stop_ids": tuple(dict.fromkeys(stop_ids)),
        "logprobs": asked.top_count,
    }
    return SamplingConfig(**chosen)


def _most_tokens(asked: CompletionRequest | ChatRequest, own: Mapping[str, Any], room: int) -> int:
    if isinstance(asked, CompletionRequest):
        return asked.max_tokens
    return asked.answer_tokens or int(own.get("max_new_tokens", room))
