"""Predicted and measured memory of a run, logged when it ends."""

from __future__ import annotations

from typing import Any

import torch

from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.memory.estimate import estimate
from bc2.train.memory.shape import TrainingShape
from bc2.train.optimizer_config import checkpoint_bytes
from bc2.train.peak import device_peak, forget_peak, host_peak
from bc2.train.run_config import RunConfig


class Footprint:
    """Measures the memory of this rank from its making on; made before the engine.

    Args:
        trained: the names of the parameters that are trained; None: all of them.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: RunConfig,
        parallel: ParallelConfig,
        world: int,
        *,
        trained: frozenset[str] | None = None,
    ):
        self.config = config
        self.device = torch.device(config.device)
        self.layout = {
            **parallel.model_dump(mode="json", exclude_defaults=True),
            "ranks": world,
            "micro_batch": config.micro_sequences,
            "activation_checkpointing": config.segment_layers,
        }
        self.predicted = _predict(model, config, parallel, world, trained)
        self._before = forget_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def row(self) -> dict[str, Any]:
        """For ``timing.jsonl``, event "memory": bytes predicted and measured, and the layout.

        On the host the peak is that of the whole process, less what it had before the engine:
        for a model of some megabytes that is mostly kernels and data. On a GPU it is what torch
        allocated.
        """
        peak = device_peak(self.device)
        return {
            "predicted": self.predicted,
            "measured": peak[0] if peak else host_peak() - self._before,
            "measure": "cuda allocated" if peak else "host resident",
            "layout": self.layout,
        }


def _predict(
    model: ModelConfig,
    config: RunConfig,
    parallel: ParallelConfig,
    world: int,
    trained: frozenset[str] | None,
) -> dict[str, int]:
    """Bytes by part and in ``total``."""
    parts = estimate(TrainingShape.of(model, config, parallel, world, trained=trained)).parts
    if torch.device(config.device).type == "cpu":
        # A save copies weights and states while training continues.
        whole = TrainingShape.of(model, config, ParallelConfig(), 1, trained=trained)
        updated = whole.trained_params
        parts["snapshot"] = checkpoint_bytes(model, config.optimizer, updated) // world
    return {**parts, "total": sum(parts.values())}
