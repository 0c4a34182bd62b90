"""The update rule of a run, ``optimizer`` of its section: its settings, and the state it keeps.

Imports no torch. `bc2.train.optimizer` builds what is described here. Another rule is another
class with the same two methods, added to `OptimizerConfig`, and its builder there.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from bc2.model.model_config import ModelConfig
from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, Settings
from bc2.train.optimizer_state import AdamWState


class AdamWConfig(Settings, AdamWState):
    """AdamW as Baichuan 2 §2.5 sets it; norms are never decayed."""

    learning_rate: float = Field(2e-4, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The highest learning rate, reached when the warm-up ends."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = Field(1e-8, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """Added to the root of the second moment (the paper does not state it)."""
    weight_decay: float = Field(0.1, ge=0, le=FP32_LARGEST)
    """Decoupled weight decay of every matrix."""
    clip_norm: float = Field(0.5, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """The gradient is scaled so that its global L2 norm is at most this."""

    @field_validator("betas")
    @classmethod
    def _open_interval(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must lie in [0, 1)")
        return betas


#: The update rules that a recipe can choose.
OptimizerConfig = AdamWConfig


def checkpoint_bytes(
    model: ModelConfig, optimizer: OptimizerConfig, trained: int | None = None
) -> int:
    """Bytes of a checkpoint's tensors: fp32 weights and the optimizer's state.

    Args:
        trained: parameters that are trained and have a state; None: all of them.
    """
    count = model.num_params()
    return round(4 * count + optimizer.state_bytes(model) * (count if trained is None else trained))
