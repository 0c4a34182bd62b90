"""The models of a run by role: trained ones in engines, frozen ones beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bc2.data.loader import Batch
from bc2.parallel.build import InitialWeights
from bc2.parallel.mesh import Mesh
from bc2.parallel.own_batch import own_batch
from bc2.parallel.state import StateSource
from bc2.train.device import pick_precision
from bc2.train.engines.base import Engine
from bc2.train.engines.frozen import FrozenModel
from bc2.train.engines.make import make_engine
from bc2.train.speed.clock import Clock

if TYPE_CHECKING:
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.algorithm import ModelRole
    from bc2.train.run_config import RunConfig


@dataclass(frozen=True)
class Models:
    """The models of a run on this rank, each called by ``models[ROLE].call_model``."""

    trained: Mapping[str, Engine]
    """The first is what the run makes."""
    frozen: Mapping[str, FrozenModel]
    mesh: Mesh

    def __getitem__(self, role: str) -> Engine | FrozenModel:
        return self.trained[role] if role in self.trained else self.frozen[role]

    def own_batch(self, batch: Batch) -> Batch:
        """The batch as this rank's `call_model` needs it, where ranks share its tokens."""
        return own_batch(batch, self.mesh.sequence)

    @property
    def product(self) -> Engine:
        """The engine of the model that the run makes."""
        return next(iter(self.trained.values()))

    @property
    def further(self) -> dict[str, Engine]:
        """The other trained models."""
        return dict(list(self.trained.items())[1:])


def make_models(
    roles: Iterable[ModelRole],
    config: RunConfig,
    parallel: ParallelConfig | None,
    mesh: Mesh,
    *,
    weights: Mapping[str, StateSource] | None = None,
    clock: Clock | None = None,
    blank: bool = False,
) -> Models:
    """Make every model of a run, in the order of `roles`, which is the same on all ranks.

    Args:
        config: device and activation checkpointing resolved.
        parallel: the layout; None: one rank alone.
        weights: by role, what to start from; the seed's where there is none.
        clock: told how long the parts of a step take.
        blank: give the trained ones no weights: a checkpoint's are going to be restored. Of one
            that is saved alone it does not have all of them.
    """
    weights = weights or {}
    roles = [*roles]
    if len({role.name for role in roles}) < len(roles):
        raise ValueError(f"two models of one name: {', '.join(role.name for role in roles)}")
    trained: dict[str, Engine] = {}
    frozen: dict[str, FrozenModel] = {}
    clock = clock or Clock(torch.device(config.device))
    for role in roles:
        if role.trained:
            own = {} if role.optimizer is None else {"optimizer": role.optimizer}
            trained[role.name] = make_engine(
                role.model, config.model_copy(update=own), parallel, mesh,
                weights=weights.get(role.name), clock=clock, blank=blank and not role.alone,
                trainable=role.trainable, adapters=role.adapters,
            )  # fmt: skip
        else:
            frozen[role.name] = _frozen(role, config, parallel, mesh, weights.get(role.name))
    if not trained:
        raise ValueError("an algorithm trains at least one model")
    return Models(trained, frozen, mesh)


def _frozen(
    role: ModelRole,
    config: RunConfig,
    parallel: ParallelConfig | None,
    mesh: Mesh,
    weights: StateSource | None,
) -> FrozenModel:
    from bc2.parallel.parallel_config import ParallelConfig

    device = torch.device(config.device)
    return FrozenModel(
        role.model,
        weights or InitialWeights(role.model, config.seed),
        parallel or ParallelConfig(),
        mesh,
        device=device,
        precision=pick_precision(config.precision, device),
    )
