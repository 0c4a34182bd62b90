"""The trained model of a run on pairs: all of it, or adapters beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bc2.align.pairs.preference_config import PreferenceConfig
from bc2.train.algorithm import INIT, ModelRole

if TYPE_CHECKING:
    from pathlib import Path

    from bc2.train.run import Run
    from bc2.train.training_settings import TrainingSettings


def trained_role(
    settings: TrainingSettings, also: Callable[[str], bool] = lambda name: False
) -> ModelRole:
    """The model that a run on pairs trains.

    Args:
        also: whether a parameter is trained beside adapters, as a new head is.
    """
    assert isinstance(settings.training, PreferenceConfig)
    lora = settings.training.lora
    if lora is None:
        return ModelRole("model", settings.model)
    from bc2.model.adapters import is_adapters
    from bc2.model.lora import add_lora

    return ModelRole(
        "model", settings.model, trainable=lambda name: is_adapters(name) or also(name),
        adapters=add_lora(lora), alone=True,
    )  # fmt: skip


def write_beside(run: Run, folder: Path) -> None:
    """Write into a checkpoint its layout of turns, and of adapters what they are."""
    from bc2.align.samples.speech import write_speech

    assert isinstance(run.config, PreferenceConfig)
    write_speech(run, folder, run.config.chat_layout)
    if run.config.lora is not None:
        from bc2.model.saved_adapter import write_adapter

        write_adapter(folder, run.config.lora, run.inputs.one(INIT.name))
