"""Model FLOPs of a run's steps, by the convention of `ModelConfig.flops_per_token`.

Imports no torch, unless parts of a model are frozen or have adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import TYPE_CHECKING

from bc2.train.memory.run_memory import adapter_count, trained_names

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.train.algorithm import ModelRole


def flops_per_token(roles: Iterable[ModelRole], row: int) -> int:
    """FLOPs of one token in a step that passes through every model once.

    Of a model that is not trained only the forward pass, a third of the three. A frozen matrix of
    a trained one has a forward pass and the gradient of its input, although that is left out below
    the lowest one that is trained; an adapter counts as any product.

    Args:
        row: tokens of the row that it is in. FLOPs are linear in it: those beside attention are
            those of 0.
    """
    return sum(_of_role(role, row) for role in roles if role.in_steps)


def _of_role(role: ModelRole, row: int) -> int:
    whole = role.model.flops_per_token(row)
    if not role.trained:
        return whole // 3
    return whole - 2 * _frozen_products(role) + 6 * adapter_count(role)


def _frozen_products(role: ModelRole) -> int:
    """Parameters of matrix products that are frozen in a trained model; an embedding is none."""
    trained = trained_names(role)
    if trained is None:
        return 0
    from bc2.model.store import expected_shapes

    frozen = {name: s for name, s in expected_shapes(role.model).items() if name not in trained}
    return sum(prod(s) for name, s in frozen.items() if len(s) > 1 and "embed" not in name)


def forward_flops(model: ModelConfig, tokens: int, row: int) -> int:
    """FLOPs of a forward pass of so many tokens in rows of `row`: see `StepData.further_flops`."""
    return model.flops_per_token(row) // 3 * tokens
