"""Model FLOPs of a run's steps, by the convention of `ModelConfig.flops_per_token`.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.train.algorithm import ModelRole


def flops_per_token(roles: Iterable[ModelRole], row: int) -> int:
    """FLOPs of one token in a step that passes through every model once.

    Of a model that is not trained only the forward pass, a third of the three.

    Args:
        row: tokens of the row that it is in. FLOPs are linear in it: those beside attention are
            those of 0.
    """
    return sum(
        role.model.flops_per_token(row) // (1 if role.trained else 3)
        for role in roles
        if role.in_steps
    )


def forward_flops(model: ModelConfig, tokens: int, row: int) -> int:
    """FLOPs of a forward pass of so many tokens in rows of `row`: see `StepData.further_flops`."""
    return model.flops_per_token(row) // 3 * tokens
