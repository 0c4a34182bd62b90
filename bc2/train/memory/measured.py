"""What a run was expected to take beside what it took, stored with its times."""

from __future__ import annotations

from typing import Any

import torch

from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.device import pick_precision
from bc2.train.memory.estimate import estimate
from bc2.train.peak import device_peak, forget_peak, host_peak
from bc2.train.pretrain_config import PretrainConfig


class Footprint:
    """The memory of this rank, from here on; made before the engine."""

    def __init__(
        self, model: ModelConfig, config: PretrainConfig, parallel: ParallelConfig, world: int
    ):
        self.config = config
        self.device = torch.device(config.device)
        self.layout = {
            **parallel.model_dump(mode="json", exclude_defaults=True),
            "ranks": world,
            "micro_batch": config.micro_sequences,
            "activation_checkpointing": config.segment_layers,
        }
        self.predicted = self._predict(model, parallel, world)
        self._before = forget_peak()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _predict(self, model: ModelConfig, parallel: ParallelConfig, world: int) -> dict[str, int]:
        config = self.config
        sequences_a_rank = config.batch_sequences // max(1, world // parallel.ranks_of_a_replica)
        expected = estimate(
            model,
            config.micro_sequences,
            config.sequence_length,
            pick_precision(config.precision, self.device),
            config.segment_layers,
            device=self.device.type,
            accumulated=config.micro_sequences < sequences_a_rank,
            parallel=parallel,
            world=world,
        )
        parts = expected.parts
        if self.device.type == "cpu":
            # A save copies weights and moments while training goes on.
            parts["snapshot"] = 12 * model.num_params() // world
        return {**parts, "total": sum(parts.values())}

    def row(self) -> dict[str, Any]:
        """For ``timing.jsonl``, event "memory": bytes predicted and measured, and the layout.

        On the host the peak is of the whole process above what it had before the engine, so
        that a model of some megabytes drowns in kernels and data; on a GPU it is what torch
        allocated.
        """
        peak = device_peak(self.device)
        return {
            "predicted": self.predicted,
            "measured": peak[0] if peak else host_peak() - self._before,
            "measure": "cuda allocated" if peak else "host resident",
            "layout": self.layout,
        }
