"""A model as DeepSpeed takes it: allocated, its forward pass any function, its ranks in groups."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh
from bc2.ranks import export_gpu, local_rank


def import_deepspeed(device: torch.device, mesh: Mesh) -> Any:
    """DeepSpeed, told of the device and of how long a collective may wait."""
    # Or DeepSpeed would take a GPU that the recipe does not use.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # By its index it makes a GPU current, now and again later.
    export_gpu(local_rank() if device.index is None else device.index)
    import deepspeed

    # A look at this table fills it: DeepSpeed tries a compiler on each of its kernels, on every
    # rank. One entry is read here, of a kernel for inference alone; building that takes half a
    # minute, and a build that was killed leaves a lock that every later one waits for without end.
    deepspeed.ops.__compatible_ops__ = {}
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(
            dist_backend=torch.distributed.get_backend(), dist_init_required=False
        )
    # It makes those of `zero_group` itself, without a limit: torch's is ten minutes with NCCL.
    deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=mesh.timeout)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what DeepSpeed prints on stdout to stderr: stdout is for results."""
    sys.stdout.flush()
    kept = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, sys.stdout.fileno())
        os.close(kept)


def allocate(
    model: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    mesh: Mesh,
    settings: dict[str, Any],
    deepspeed: Any,
) -> None:
    """Allocate a model; with ZeRO 3 piece by piece, each partitioned before the next one."""
    from deepspeed.utils import groups

    pieces = [model.model.embed_tokens, *model.model.layers, model.model.norm, model.head]
    stage = settings["zero_optimization"]["stage"]
    for piece in pieces:
        piece.to_empty(device=device)
        piece.to(dtype)
        if stage == 3:
            deepspeed.zero.Init(
                module=piece,
                data_parallel_group=mesh.replicas.handle,
                config_dict_or_path=settings,
                mpu=DeepSpeedGroups(mesh),
                # DeepSpeed makes it with the first piece, if the recipe asks for such groups.
                zero_param_parallel_group=groups._get_zero_param_intra_parallel_group(),
            )
    if stage == 3 and model.config.tied_head:
        # The embedding's weight is gathered for the head too, in which it is no parameter.
        deepspeed.zero.register_external_parameter(model.head, model.model.embed_tokens.weight)


class CallsFunction(nn.Module):
    """A model whose forward pass is any function of it.

    DeepSpeed gathers weights around a forward pass, and the loss is part of it.
    """

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


class DeepSpeedGroups:
    """The mesh as DeepSpeed asks for it (Megatron's ``mpu``)."""

    def __init__(self, mesh: Mesh):
        self._model, self._data = mesh.tensor, mesh.replicas

    def get_model_parallel_rank(self) -> int:
        return self._model.rank

    def get_model_parallel_world_size(self) -> int:
        return self._model.size

    def get_model_parallel_group(self) -> Any:
        return self._model.handle

    def get_data_parallel_rank(self) -> int:
        return self._data.rank

    def get_data_parallel_world_size(self) -> int:
        return self._data.size

    def get_data_parallel_group(self) -> Any:
        return self._data.handle
