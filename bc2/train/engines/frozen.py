"""A model that is run and never trained, such as the reference of an alignment or a reward model.

It is held in the run's layout, in the type of its forward pass alone: 2 bytes a parameter in
bf16, without fp32 weights, gradients or an optimizer. With ZeRO 3 each rank has a piece of every
parameter, and DeepSpeed gathers them to run, as it does for a model that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from bc2.parallel.build import build_model, parts
from bc2.parallel.mesh import Mesh
from bc2.parallel.state import StateSource
from bc2.train.device import DTYPES
from bc2.train.engines.deepspeed_settings import ds_settings
from bc2.train.engines.zero import load_weight
from bc2.train.precision import Precision

if TYPE_CHECKING:
    from bc2.model.adapters import AddAdapters
    from bc2.model.model_config import ModelConfig
    from bc2.parallel.parallel_config import ParallelConfig


class FrozenModel:
    """This rank's part of a model, which is called as an `Engine`'s.

    All ranks make it and call it, in the same order beside the run's engines.

    Args:
        weights: where they are read, whatever the layout that saved them.
        parallel: the run's layout.
        precision: the type that the weights are held and run in.
        adapters: those that the model has.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: StateSource,
        parallel: ParallelConfig,
        mesh: Mesh,
        *,
        device: torch.device,
        precision: Precision,
        adapters: AddAdapters | None = None,
    ):
        self.mesh = mesh
        self.parts = parts(config, mesh, adapters)
        layout = parallel.on(mesh.world.size)
        self.shares_weights = layout.zero == 3 or layout.ranks_of_a_replica > 1
        self.model = build_model(config, mesh, adapters).requires_grad_(False)
        self._engine: Callable[..., Any] | None = None
        if layout.zero == 3:
            self._engine = self._partition(layout, device, precision)
        else:
            self.model.to(DTYPES[precision]).to_empty(device=device)
        self._load(weights)

    def _partition(
        self, parallel: ParallelConfig, device: torch.device, precision: Precision
    ) -> Callable[..., Any]:
        """Allocate the model partitioned, in a DeepSpeed engine that only runs it."""
        from bc2.train.engines.deepspeed_model import (
            CallsFunction,
            DeepSpeedGroups,
            allocate,
            import_deepspeed,
            stdout_to_stderr,
        )

        held = sum(prod(part.shard_shape) for part in self.parts.values())
        settings = ds_settings(parallel, precision, held)
        with stdout_to_stderr():
            deepspeed = import_deepspeed(device, self.mesh)
            allocate(self.model, device, DTYPES[precision], self.mesh, settings, deepspeed)
            engine: Callable[..., Any]
            engine, *_ = deepspeed.initialize(
                model=CallsFunction(self.model), config=settings, mpu=DeepSpeedGroups(self.mesh)
            )
        return engine

    @torch.no_grad()
    def _load(self, weights: StateSource) -> None:
        for name, parameter in self.model.named_parameters():
            load_weight(parameter, name, self.parts[name], weights)

    @torch.no_grad()
    def call_model(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(model, *arguments)``, as `Engine.call_model`; never with a gradient.

        Args:
            function: returns a tensor, or tuples and dictionaries of tensors.
        """
        if self._engine is None:
            return function(self.model, *arguments)
        return self._engine(function, *arguments)
