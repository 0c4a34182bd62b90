"""How many parameters a run's model has beside its own, and which of its own cost less."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bc2.train.algorithm import ModelRole

# torch is imported only where there is something to count: it builds a model on the meta device.


def num_adapters(role: ModelRole) -> int:
    """Parameters of its adapters, which are all trained."""
    if role.adapters is None:
        return 0
    from bc2.model.adapters import is_adapters
    from bc2.parallel.build import parts
    from bc2.parallel.mesh import Mesh

    shapes = parts(role.model, Mesh(), role.adapters)
    return sum(prod(part.shape) for name, part in shapes.items() if is_adapters(name))


def frozen_products(role: ModelRole) -> int:
    """Parameters of matrix products that are frozen in a trained model; an embedding is none."""
    if role.trainable is None:
        return 0
    from bc2.model.store import expected_shapes

    shapes = expected_shapes(role.model)
    frozen = {name: shape for name, shape in shapes.items() if not role.trainable(name)}
    return sum(prod(s) for name, s in frozen.items() if len(s) > 1 and "embed" not in name)
