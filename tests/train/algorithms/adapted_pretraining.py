"""Pretraining of adapters alone: what fine-tuning with LoRA will ask of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bc2.model.adapters import is_adapters
from bc2.train.algorithm import ModelRole
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.pretraining import Pretraining

if TYPE_CHECKING:
    from bc2.model.transformer import Transformer
    from bc2.train.training_settings import TrainingSettings


class AdaptedConfig(PretrainConfig):
    """Settings of `bc2 adapted`."""

    section: ClassVar[str] = "adapted"


def add(model: Transformer) -> None:
    from adapter_of_rank import LowRank

    for layer in model.model.layers:
        layer.mlp.up_proj.adapter = LowRank(layer.mlp.up_proj, rank=2)


class Adapted(Pretraining):
    """Train adapters of rank 2 beside a base model."""

    section = AdaptedConfig
    role = "adapter"

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        return (
            ModelRole("model", settings.model, trainable=is_adapters, adapters=add, alone=True),
        )


ADAPTED = Adapted()
