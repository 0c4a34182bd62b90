"""Which parameters of a model are trained. The others are frozen.

A frozen parameter is held in the type of the forward pass and nothing else: 2 bytes in bf16,
without an fp32 master, a gradient or states of the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn

#: The names of the parameters that are trained, or what says of a name whether it is one.
Trainable = Callable[[str], bool] | Collection[str]


def names_to_train(names: Iterable[str], trainable: Trainable | None) -> frozenset[str]:
    """Those of a model's parameters that are trained.

    Args:
        names: of all parameters.
        trainable: None: all of them are.

    Raises:
        ValueError: one is not in the model, or none is trained.
    """
    every = frozenset(names)
    if trainable is None:
        return every
    if callable(trainable):
        trained = frozenset(name for name in every if trainable(name))
    else:
        trained = frozenset(trainable)
    if trained - every:
        raise ValueError(f"the model has no parameter {min(trained - every)} to train")
    if not trained:
        raise ValueError("no parameter of the model is trained")
    return trained


def freeze(model: nn.Module, trained: Collection[str], dtype: torch.dtype) -> None:
    """Freeze all parameters but these, and hold them in `dtype`; best on the meta device."""
    for name, parameter in model.named_parameters():
        if name not in trained:
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)
