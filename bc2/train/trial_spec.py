"""What `bc2.train.micro_batch_trial` is told. Imports no torch."""

from __future__ import annotations

from bc2.model.model_config import ModelConfig
from bc2.recipe import Settings
from bc2.train.pretrain.pretrain_config import PretrainConfig


class TrialSpec(Settings):
    """What is tried."""

    model: ModelConfig
    training: PretrainConfig
    """Device and precision resolved."""
    margin: float
    """Share of a GPU's free memory that is left unused."""
