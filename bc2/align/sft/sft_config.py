"""The [sft] section: what fine-tuning adds to the settings of a run. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from bc2.align.samples.render_settings import Faulty, TooLong, TrainOn
from bc2.model.lora_config import LoraConfig
from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, UNKEYED
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.run_config import (
    LossGuardConfig,
    ScheduleConfig,
    ScheduleShape,
    TokenBatchConfig,
)

Mean = Literal["tokens", "samples"]


class SftOptimizerConfig(AdamWConfig):
    """AdamW as the released fine-tuning code of Baichuan 2 sets it."""

    learning_rate: float = Field(2e-5, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The learning rate, which is constant unless the schedule says otherwise."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the first and second moment."""
    weight_decay: float = Field(1e-4, ge=0, le=FP32_LARGEST)
    """Decoupled weight decay of every matrix."""
    clip_norm: float = Field(1.0, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The gradient is scaled so that its global L2 norm is at most this."""


class SftScheduleConfig(ScheduleConfig):
    """The learning rate: constant from the first step on, as in the released code."""

    shape: ScheduleShape = "constant"
    """After the warm-up: constant, or down along half a cosine or a line."""
    warmup: str = "0 steps"
    """Length of the linear warm-up, as "N steps" or "N tokens"; "0 steps": none."""


class SftConfig(TokenBatchConfig):
    """Settings of `bc2 sft`."""

    section: ClassVar[str] = "sft"
    field_order = (
        "init", "chats", "length", "batch_tokens", "micro_batch", "sequence_length", "chat_layout",
        "train_on", "too_long", "faulty", "mean", "lora", "precision", "device", "seed",
        "optimizer", "schedule", "guard",
    )  # fmt: skip

    init: str | None = Field(None, json_schema_extra=UNKEYED)
    """The model that is fine-tuned: a checkpoint by its ref, a recipe that makes it, or a model of
    the hub (hf://OWNER/NAME@REVISION). Needed. Keyed by its digest."""
    chats: str | None = Field(None, json_schema_extra=UNKEYED)
    """Conversations: a ref, or a recipe that makes them. None: this recipe's own [chats]. Keyed by
    their digest."""
    chat_layout: Literal["baichuan", "chatml", "llama3"] | None = None
    """The layout of turns that the model learns; None: that which it has already."""
    train_on: TrainOn = "assistant"
    """What is learnt of a conversation: the assistant's messages with their ends, or all messages.
    A message that says `train` itself is learnt or not as it says."""
    too_long: TooLong = "stop"
    """What is done with conversations longer than `sequence_length`: nothing is trained; they are
    left out; or they keep the first whole rounds that fit, and are left out if none does."""
    faulty: Faulty = "stop"
    """What is done with conversations in which `bc2 data lint` finds errors: nothing is trained, or
    they are left out."""
    mean: Mean = "tokens"
    """What the loss is the mean of: all trained tokens of a step (a long answer counts more), or
    its samples' own means."""
    eval_samples: int = Field(1_000, ge=0, json_schema_extra=UNKEYED)
    """At most this many held-out conversations are read for the held-out loss; 0: never."""
    sample_prompts: int = Field(3, ge=0, le=10_000, json_schema_extra=UNKEYED)
    """Held-out conversations whose first answer the model writes after each evaluation; 0: none."""
    sample_tokens: int = Field(64, ge=1, le=65_536, json_schema_extra=UNKEYED)
    """At most this many tokens are in each of these answers."""
    optimizer: SftOptimizerConfig = SftOptimizerConfig()
    """[sft.optimizer]"""
    schedule: SftScheduleConfig = SftScheduleConfig()
    """[sft.schedule]"""
    guard: LossGuardConfig = LossGuardConfig()
    """[sft.guard]"""
    lora: LoraConfig | None = None
    """[sft.lora]: train adapters of low rank beside the model, which stays as it is. None: all of
    the model is trained."""

    @model_validator(mode="after")
    def _begins_with_a_model(self) -> Self:
        if self.init is None:
            raise ValueError("init names the model that is fine-tuned, and there is none")
        return self
