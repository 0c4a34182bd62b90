"""The settings of a run on their way to another process, as one line of JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.pipeline.table import algorithm_named
from bc2.recipe import Recipe, Settings
from bc2.train.run_config import RunConfig
from bc2.train.training_settings import TrainingSettings


class TrainingSpec(Settings):
    """An algorithm with its settings; what a worker is told derives from it."""

    algorithm: str
    """Its section."""
    model: ModelConfig
    training: SerializeAsAny[RunConfig]
    """The section: device and precision resolved."""
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)

    @field_validator("training", mode="before")
    @classmethod
    def _of_algorithm(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Mapping):
            return value
        section = algorithm_named(info.data["algorithm"]).section
        return section.model_validate_json(json.dumps(value), strict=True)

    @property
    def settings(self) -> TrainingSettings:
        """As of a recipe that nobody wrote."""
        return TrainingSettings(
            name=self.algorithm,
            algorithm=algorithm_named(self.algorithm),
            model=self.model,
            training=self.training,
            parallel=self.parallel,
            recipe=Recipe(self.algorithm, "", {}, ()),
        )
