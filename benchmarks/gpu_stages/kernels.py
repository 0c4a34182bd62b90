"""Which events of torch's profiler are work of the GPU."""

from __future__ import annotations

from typing import Any

import torch


def on_gpu(event: Any) -> bool:
    """Whether an event is a kernel or a copy.

    torch also marks on the GPU how long named parts of a program took there, such as an
    optimizer's step or a compiled graph. Their kernels are events too, and count once.
    """
    cuda = event.device_type == torch.autograd.DeviceType.CUDA
    return bool(cuda and not event.is_user_annotation)
