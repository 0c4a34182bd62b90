"""The [pretrain] section: what pretraining adds to the settings of a run."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from bc2.recipe import FP32_LARGEST, UNKEYED
from bc2.train.run_config import LossGuardConfig, TokenBatchConfig


class PretrainConfig(TokenBatchConfig):
    """Settings of `bc2 pretrain`."""

    section: ClassVar[str] = "pretrain"
    field_order = (
        "tokens", "length", "batch_tokens", "micro_batch", "sequence_length", "precision", "device",
        "init", "seed", "weights", "max_epochs", "z_loss", "optimizer", "schedule", "guard",
        "compile", "activation_checkpointing", "deterministic", "data_timeout_s",
        "checkpoint_every", "keep_checkpoints", "eval_every", "eval_tokens", "sample_prompts",
        "sample_tokens",
    )  # fmt: skip

    tokens: str | None = Field(None, json_schema_extra=UNKEYED)
    """Token shards: a ref, or a recipe that makes them. None: this recipe's own [tokens].
    Keyed by their digest."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Share of samples of each source, up to a common factor. Where the corpus has strata, a
    source's name stands for the sum of its own, which keep their proportion. Empty: as the
    corpus has it, and if it has no weights, in proportion to tokens."""
    max_epochs: float | None = Field(None, gt=0, json_schema_extra=UNKEYED)
    """A run that would read some text more often than this does not start."""
    z_loss: float = Field(2e-4, ge=0, le=FP32_LARGEST)
    """Weight of the squared largest logit (Baichuan 2, equation 1)."""
    eval_tokens: int = Field(1_000_000, ge=0, json_schema_extra=UNKEYED)
    """At most this many held-out tokens are read for the held-out loss; 0: never measure."""
    sample_prompts: int = Field(3, ge=0, le=10_000, json_schema_extra=UNKEYED)
    """Held-out documents whose beginnings are continued after each evaluation; 0: none."""
    sample_tokens: int = Field(48, ge=1, le=65_536, json_schema_extra=UNKEYED)
    """At most this many tokens are added to each of them."""
    guard: LossGuardConfig = LossGuardConfig()
    """[pretrain.guard]"""

    @field_validator("weights")
    @classmethod
    def _not_negative(cls, weights: dict[str, float]) -> dict[str, float]:
        if any(weight < 0 for weight in weights.values()):
            raise ValueError("a mixture weight cannot be negative")
        if weights and not any(weights.values()):
            raise ValueError("every source has weight 0; give one a weight above 0")
        return weights
