"""The [reward] section. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from bc2.align.pairs.preference_config import PreferenceConfig


class RewardConfig(PreferenceConfig):
    """Settings of `bc2 reward`."""

    section: ClassVar[str] = "reward"
    field_order = (
        "init", "pairs", "length", "batch_tokens", "micro_batch", "sequence_length", "chat_layout",
        "too_long", "faulty", "alpha", "alpha_of", "lora", "precision", "device", "seed",
        "optimizer", "schedule", "guard",
    )  # fmt: skip

    alpha: float = Field(0.0, ge=0, le=1e6)
    """Weight of the absolute loss, (r - r̂)² of both answers, in pairs of sources that have scores.
    The report gives no value: docs/alignment.md compares some."""
    alpha_of: Mapping[str, Annotated[float, Field(ge=0, le=1e6)]] = {}
    """The same by the name of a source, instead of `alpha`."""
