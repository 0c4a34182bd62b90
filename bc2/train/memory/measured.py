"""Predicted and measured memory of a run, logged when it ends."""

from __future__ import annotations

from typing import Any

import torch

from bc2.train.memory.run_memory import estimate_run
from bc2.train.peak import device_peak, forget_peak, host_peak
from bc2.train.training_settings import TrainingSettings


class Footprint:
    """Measures the memory of this rank from its making on; made before the engine."""

    def __init__(self, settings: TrainingSettings, world: int):
        config = settings.training
        self.device = torch.device(config.device)
        self.layout = {
            **settings.parallel.model_dump(mode="json", exclude_defaults=True),
            "ranks": world,
            "micro_batch": config.micro_sequences,
            "activation_checkpointing": config.segment_layers,
        }
        self.predicted = _predict(settings, world)
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


def _predict(settings: TrainingSettings, world: int) -> dict[str, int]:
    """Bytes by part and in ``total``."""
    parts = estimate_run(settings, world).parts
    if torch.device(settings.training.device).type == "cpu":
        # A save copies weights and states while training continues.
        parts["snapshot"] = settings.checkpoint_bytes // world
    return {**parts, "total": sum(parts.values())}
