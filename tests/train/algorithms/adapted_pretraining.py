"""Pretraining of adapters alone, which does what fine-tuning with LoRA asks of the run.

Without `lora` it trains the whole model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bc2.model.adapters import is_adapters
from bc2.model.lora_config import LoraConfig
from bc2.train.algorithm import ModelRole
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.pretraining import Pretraining

if TYPE_CHECKING:
    from pathlib import Path

    from bc2.registry import Role
    from bc2.train.run import Run
    from bc2.train.run_config import RunConfig
    from bc2.train.training_settings import TrainingSettings


class AdaptedConfig(PretrainConfig):
    """Settings of `bc2 adapted`."""

    section: ClassVar[str] = "adapted"

    lora: LoraConfig | None = None


class Adapted(Pretraining):
    """Train adapters beside a base model."""

    section = AdaptedConfig
    role = "base"

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        lora = lora_of(settings.training)
        if lora is None:
            return super().models(settings)
        from bc2.model.lora import add_lora

        return (
            ModelRole(
                "model", settings.model, trainable=is_adapters, adapters=add_lora(lora), alone=True
            ),
        )

    def checkpoint_role(self, config: RunConfig) -> Role:
        return "base" if lora_of(config) is None else "adapter"

    def write_beside(self, run: Run, folder: Path) -> None:
        from bc2.model.saved_adapter import write_adapter

        lora = lora_of(run.config)
        if lora is not None:
            write_adapter(folder, lora, run.inputs.one("init"))


def lora_of(config: RunConfig) -> LoraConfig | None:
    assert isinstance(config, AdaptedConfig)
    return config.lora


ADAPTED = Adapted()
