"""How the inference engine uses memory and puts requests together. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from bc2.generate.engine_formulas import EngineFormulas
from bc2.recipe import Settings


class EngineConfig(Settings, EngineFormulas):
    """Settings of an `InferenceEngine`.

    In 16 bits they change the last bits of results, because they change the shapes of batches.
    """

    cache_bytes: int | None = Field(default=None, gt=0)
    """Memory for keys and values, in bytes; None: a part of what is free on the device when the
    engine is made, which differs from run to run. Greedy output of a 16-bit model takes as much
    again for the settling of near ties (half as much if None)."""

    block_tokens: int = Field(default=16, gt=0)
    """Tokens of a block, the unit in which memory is taken, returned and shared."""

    idle_share: float = Field(default=0.25, ge=0, le=1)
    """The part of the cache that may hold beginnings of texts that no sequence uses any more."""

    max_running: int = Field(default=256, gt=0)
    """The most sequences that decode together; never more than `step_tokens`."""

    step_tokens: int = Field(default=2048, gt=0)
    """The most tokens read in one forward pass; prompts are read in pieces of what is left
    beside the decoding sequences. A single text to score may be longer."""

    window: int = Field(default=4096, gt=0)
    """Score requests that are read together and searched for common beginnings."""
