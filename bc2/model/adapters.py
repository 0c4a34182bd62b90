"""Extra parameters beside a layer's weight, which are trained while the rest is frozen.

An `Adapter` stands beside the weight of a `bc2.model.transformer.Linear`, and what it makes of the
layer's input is added to the layer's output. The weight keeps its name; the adapter's parameters
are `….adapter.NAME`. What each adapter sees, with D the hidden and F the feed-forward size:

- `self_attn.W_pack`, from the normalised hidden states [T, D] to [T, (H + 2 G) K], usually
  [T, 3D]: queries, keys and values one after another, before the rotary embedding. They are one
  matrix here, as in the released models, so an adapter of rank r shares its r channels among the
  three.
- `self_attn.o_proj`, from what the heads say, joined, [T, H K] to [T, D].
- `mlp.gate_proj` and `mlp.up_proj`, each from the normalised hidden states [T, D] to [T, F]. They
  are two matrices, so each has an adapter of its own.
- `mlp.down_proj`, from silu(gate) · up [T, F] to [T, D].

Under sequence parallelism T is this rank's tokens. Tensor parallelism divides those of
`bc2.model.lora` with the weight that they stand beside, and refuses others.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from bc2.model.transformer import Transformer

#: Puts adapters beside layers of a model on the meta device: ``layer.mlp.up_proj.adapter = ...``.
AddAdapters = Callable[["Transformer"], None]

#: What a `Linear` calls its adapter.
MODULE = "adapter"

#: The part of a parameter's name before the name that it has in its adapter.
INFIX = f".{MODULE}."


class Adapter(nn.Module):
    """Added to a linear layer's output: [T, I] -> [T, O], in the input's dtype."""

    @abstractmethod
    def draw(self, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """The initial value of one of its parameters, in fp32 on the CPU.

        Args:
            name: that it has in the adapter.
            generator: for this parameter alone, so that nothing depends on an order.
        """


def is_adapters(name: str) -> bool:
    """Whether a parameter of a model is one of an adapter."""
    return INFIX in name


def draw_adapter(model: Transformer, name: str, seed: int) -> Tensor:
    """The initial value of an adapter's parameter: by the seed and its name alone.

    Args:
        model: has the adapter, on any device.
        name: of the parameter in the model.
    """
    path, _, inner = name.rpartition(INFIX)
    adapter = model.get_submodule(path + INFIX.rstrip("."))
    assert isinstance(adapter, Adapter)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return adapter.draw(inner, model.get_parameter(name).shape, generator)


@contextmanager
def without_adapters(model: Transformer) -> Iterator[None]:
    """Run a model as its base: what stands beside its weights adds nothing meanwhile."""
    adapted = [
        (module, module.adapter)
        for module in model.modules()
        if isinstance(getattr(module, MODULE, None), Adapter)
    ]
    try:
        for module, _ in adapted:
            module.adapter = None  # type: ignore[assignment]
        yield
    finally:
        for module, adapter in adapted:
            module.adapter = adapter
