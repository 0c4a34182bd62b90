"""How the next token is chosen and when to stop. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from bc2.recipe import UNKEYED, Settings


class SamplingConfig(Settings):
    """Settings of one generation; applied in the order temperature, top-k, top-p."""

    max_new_tokens: int = Field(default=256, gt=0)
    """Most tokens added to a prompt."""

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by this; 0 takes the likeliest token (greedy)."""

    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens, and any that tie with the last of them; 0 keeps all."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the fewest likeliest tokens that have this much probability together."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Together with the prompt's index, seeds the random numbers of the prompt."""

    stop: tuple[str, ...] = ()
    """Texts that end the output; they are not part of it."""

    batch_size: int = Field(default=32, gt=0, json_schema_extra=UNKEYED)
    """Prompts that are continued together; limits the memory of the cache."""
