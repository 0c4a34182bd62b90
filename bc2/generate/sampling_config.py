"""How the next token is chosen and when to stop. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from bc2.recipe import Settings

#: The most alternatives of a token that can be asked for.
MOST_LOGPROBS = 100

#: The most continuations of one prompt that can be asked for at once.
MOST_CONTINUATIONS = 1024


class SamplingConfig(Settings):
    """Settings of one request, applied in this order.

    Repetition penalty, temperature, top-k, top-p, min-p.
    """

    max_new_tokens: int = Field(default=256, gt=0)
    """Most tokens added to a prompt."""

    n: int = Field(default=1, gt=0, le=MOST_CONTINUATIONS)
    """Continuations of the prompt. Its keys and values are computed once for all of them."""

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by this; 0 takes the likeliest token (greedy)."""

    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens, and any that tie with the last of them; 0 keeps all."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the fewest likeliest tokens that have this much probability together, and any that
    tie with the last of them."""

    min_p: float = Field(default=0.0, ge=0, le=1)
    """Keep tokens that are at least this many times as likely as the likeliest; 0 keeps all."""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """Logits of tokens of the prompt and of the output so far are divided by this if positive,
    else multiplied by it (CTRL, arXiv 1909.05858); 1 changes nothing."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the random numbers; the n continuations of a prompt have different ones."""

    stop: tuple[str, ...] = ()
    """Texts that end the output; they are not part of it."""

    stop_ids: tuple[int, ...] | None = None
    """Tokens that end the output; they are not part of it. None: the end of text. (): none."""

    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    """Report log-probabilities, and of this many likeliest alternatives for each token; None:
    report none."""
