"""How weights are updated: the update rule, its parameter groups, its state and its clipping.

Engines hold fp32 weights, sum their gradients and take the gradient's norm; all else about an
update they ask an `Optimizer`. Another rule is a subclass of it that `make_optimizer` chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bc2.train.optimizer_state import MOMENTS

if TYPE_CHECKING:
    from bc2.train.optimizer_config import AdamWConfig, OptimizerConfig

#: The number of updates made, which a state may have beside the tensors of the parameter's shape,
#: and with ZeRO must have: fp32, [].
STEP = "step"


class Optimizer(ABC):
    """An update rule over the fp32 weights of this rank.

    Attributes:
        inner: torch's optimizer. DeepSpeed keeps its groups and replaces the parameters of
            each by flattened weights.
        state_names: by parameter, the names of the fp32 tensors of its shape in its state.
        group_state_names: the same for the parameters of each group of `inner`.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        state_names: Mapping[str, tuple[str, ...]],
        group_state_names: Sequence[tuple[str, ...]],
    ):
        self.inner = inner
        self.state_names = state_names
        self.group_state_names = group_state_names

    @abstractmethod
    def prepare(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        """Set the learning rate and the clipping of the next update.

        Args:
            norm: global L2 norm of the gradient.
            clip_norm: the largest norm that is not scaled down.
        """

    @property
    def state(self) -> Mapping[Tensor, dict[str, Tensor]]:
        """The state of each weight, by name; empty before its first update."""
        return self.inner.state

    def set_state(self, weight: Tensor, values: Mapping[str, Tensor]) -> None:
        """Replace the state of a weight; an empty one is that before the first update."""
        state = self.inner.state[weight]
        state.clear()
        state.update(values)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the state."""
        for state in self.inner.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


class AdamW(Optimizer):
    """torch's fused AdamW; matrices are decayed and vectors are not."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        config: AdamWConfig,
    ):
        decayed, others = (
            [p for name, p in parameters.items() if (len(shapes[name]) >= 2) == matrices]
            for matrices in (True, False)
        )
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # An empty one, where only matrices are trained, say, is none for DeepSpeed.
        groups = [group for group in groups if group["params"]]
        inner = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
        )
        names = {name: config.state_names(name, shapes[name]) for name in parameters}
        super().__init__(inner, names, [MOMENTS] * len(groups))

    def prepare(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        # Clipping divides inside AdamW's kernel: one pass over the gradient fewer.
        excess = (norm + 1e-6) / clip_norm if norm > clip_norm else None
        self.inner.grad_scale = None if excess is None else torch.tensor(excess)  # type: ignore[attr-defined]
        for group in self.inner.param_groups:
            group["lr"] = learning_rate


def make_optimizer(
    parameters: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    config: OptimizerConfig,
) -> Optimizer:
    """The optimizer of a recipe over parameters by name.

    Args:
        shapes: of the whole parameters: one that ZeRO 3 has partitioned has none of its own.
    """
    return AdamW(parameters, shapes, config)
