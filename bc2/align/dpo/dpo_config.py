"""The [dpo] section. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bc2.align.pairs.preference_config import PreferenceConfig, PreferenceOptimizerConfig
from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, UNKEYED

LossName = Literal["dpo", "ipo", "length_normalised"]


class DpoOptimizerConfig(PreferenceOptimizerConfig):
    """AdamW with the small steps that direct preference optimisation takes."""

    learning_rate: float = Field(5e-7, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The highest learning rate."""


class DpoConfig(PreferenceConfig):
    """Settings of `bc2 dpo`."""

    section: ClassVar[str] = "dpo"
    field_order = (
        "init", "pairs", "reference", "reference_logprobs", "length", "batch_tokens", "micro_batch",
        "sequence_length", "chat_layout", "too_long", "faulty", "loss", "beta", "label_smoothing",
        "sft_weight", "lora", "precision", "device", "seed", "optimizer", "schedule", "guard",
    )  # fmt: skip

    reference: str | None = Field(None, json_schema_extra=UNKEYED)
    """The model that the policy is held to. None: `init`. Keyed by its digest."""
    reference_logprobs: str | None = Field(None, json_schema_extra=UNKEYED)
    """Log-probabilities of the reference that are registered already, by their ref. None: those of
    the same pairs and reference are found, or computed and registered."""
    loss: LossName = "dpo"
    """The loss of a pair: -log σ(β h) of the difference h of its log-ratios (arXiv 2305.18290); of
    their means over the tokens of each answer; or (h - 1 / (2 β))² (IPO, arXiv 2310.12036)."""
    beta: float = Field(0.1, gt=0, le=1e6)
    """β: how much it costs to leave the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs whose order is taken to be wrong. Not of the loss ipo."""
    sft_weight: float = Field(0.0, ge=0, le=1e6)
    """Weight of a further term: the chosen answer's mean loss in nats a token."""
    sample_prompts: int = Field(3, ge=0, le=10_000, json_schema_extra=UNKEYED)
    """Held-out prompts that the model answers after each evaluation; 0: none."""
    sample_tokens: int = Field(64, ge=1, le=65_536, json_schema_extra=UNKEYED)
    """At most this many tokens are in each of these answers."""
    optimizer: DpoOptimizerConfig = DpoOptimizerConfig()
    """[dpo.optimizer]"""

    @model_validator(mode="after")
    def _with_effect(self) -> Self:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing has no meaning for the loss ipo; leave it at 0")
        return self

    @property
    def adapter_off(self) -> bool:
        """Whether the reference is the policy without its adapters."""
        return self.lora is not None and not (self.reference or self.reference_logprobs)
