"""What [reward] and [dpo] have in common: settings of a run on pairs. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bc2.align.samples.render_settings import Faulty
from bc2.model.lora_config import LoraConfig
from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, UNKEYED
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.run_config import LossGuardConfig, ScheduleConfig, ScheduleShape, TokenBatchConfig

#: The weight of a batch that is the number of its pairs, which losses are divided by.
PAIRS = "pairs"


class PreferenceOptimizerConfig(AdamWConfig):
    """AdamW for training on pairs: no weight decay."""

    learning_rate: float = Field(1e-5, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    weight_decay: float = Field(0.0, ge=0, le=FP32_LARGEST)
    """Decoupled weight decay of every matrix."""
    clip_norm: float = Field(1.0, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The gradient is scaled so that its global L2 norm is at most this."""


class PreferenceScheduleConfig(ScheduleConfig):
    """The learning rate: up from zero and down along a line."""

    shape: ScheduleShape = "linear"
    """After the warm-up: constant, or down along half a cosine or a line."""
    warmup: str = "0 steps"
    """Length of the linear warm-up, as "N steps" or "N tokens"; "0 steps": none."""


class PreferenceConfig(TokenBatchConfig):
    """Settings of a run on pairs.

    Rows of `sequence_length` tokens hold whole pairs: both answers, each with its prompt. So a step
    of `batch_tokens` sees as many pairs as fit, and losses are means over these.
    """

    init: str | None = Field(None, json_schema_extra=UNKEYED)
    """The model that training begins with: a checkpoint by its ref, a recipe that makes it, or a
    model of the hub (hf://OWNER/NAME@REVISION). Needed. Keyed by its digest."""
    pairs: str | None = Field(None, json_schema_extra=UNKEYED)
    """Pairs of answers: a ref, or a recipe that makes them. None: this recipe's own [pairs]. Keyed
    by their digest."""
    chat_layout: Literal["baichuan", "chatml", "llama3"] | None = None
    """The layout of turns by which answers are read; None: that which the model has."""
    too_long: Faulty = "stop"
    """What is done with pairs whose two answers do not fit into a row of `sequence_length`: nothing
    is trained, or they are left out. Answers are never cut."""
    faulty: Faulty = "stop"
    """What is done with pairs in which `bc2 data lint` finds errors: nothing is trained, or they
    are left out."""
    eval_pairs: int = Field(1_000, ge=0, json_schema_extra=UNKEYED)
    """At most this many held-out pairs are read in an evaluation; 0: never."""
    optimizer: PreferenceOptimizerConfig = PreferenceOptimizerConfig()
    """The update rule."""
    schedule: PreferenceScheduleConfig = PreferenceScheduleConfig()
    """The learning rate."""
    guard: LossGuardConfig = LossGuardConfig()
    """What is done about bad steps."""
    lora: LoraConfig | None = None
    """Train adapters of low rank beside the model, which stays as it is. None: all of the model is
    trained."""

    @model_validator(mode="after")
    def _begins_with_a_model(self) -> Self:
        if self.init is None:
            raise ValueError("init names the model that training begins with, and there is none")
        return self
