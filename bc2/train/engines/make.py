"""The engine that a layout asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bc2.parallel.build import InitialWeights, build_model, parts
from bc2.parallel.mesh import Mesh
from bc2.parallel.state import HeldTensors, StateSource
from bc2.train.clock import Clock
from bc2.train.device import DTYPES, pick_compile, pick_precision
from bc2.train.engines.base import Engine
from bc2.train.engines.local import LocalEngine
from bc2.train.engines.trainable import Trainable, freeze, names_to_train

if TYPE_CHECKING:
    from bc2.model.adapters import AddAdapters
    from bc2.model.model_config import ModelConfig
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.run_config import RunConfig


def make_engine(
    model: ModelConfig,
    config: RunConfig,
    parallel: ParallelConfig | None,
    mesh: Mesh,
    *,
    clock: Clock | None = None,
    blank: bool = False,
    weights: StateSource | None = None,
    trainable: Trainable | None = None,
    adapters: AddAdapters | None = None,
) -> Engine:
    """This rank's engine.

    Args:
        config: device and activation checkpointing resolved.
        parallel: the layout; None: one rank alone.
        clock: told how long the parts of a step take.
        blank: draw no weights, which takes minutes for a large model: a checkpoint's are going
            to be restored. Until then the engine refuses to compute.
        weights: that it begins with, such as `StartWeights`; None: those that the seed draws.
        trainable: which parameters are trained, see `bc2.train.engines.trainable`; None: all.

        adapters: puts adapters beside the model's layers. Their names are for `trainable` to say.

    Raises:
        RecipeError: the layout cannot divide adapters.
        ValueError: `trainable` names a parameter that the model does not have, or none at all.
    """
    if blank and weights is not None:
        raise ValueError("a blank engine begins without weights")
    device = torch.device(config.device)
    layout = parallel.on(mesh.world.size) if parallel else None
    torch.manual_seed(config.seed)
    shared: dict[str, Any] = {
        "precision": pick_precision(config.precision, device),
        "compile": pick_compile(config.compile, device),
        "checkpointing": config.segment_layers,
        "clock": clock,
        "mesh": mesh,
        "adapters": adapters,
    }
    engine: Engine
    if layout is not None and layout.zero:
        from bc2.train.engines.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(
            model,
            config.optimizer,
            layout,
            device=device,
            seed=None,
            trainable=trainable,
            **shared,
        )
    else:
        built = build_model(model, mesh, adapters)
        trained = names_to_train(parts(model, mesh, adapters), trainable)
        # Before there is memory, which is then taken in their own type.
        freeze(built, trained, DTYPES[shared["precision"]])
        built.to_empty(device=device)
        engine = LocalEngine(built, config.optimizer, blank=True, **shared)
    if not blank:
        engine.restore(weights or InitialWeights(model, config.seed, adapters), HeldTensors())
    return engine
