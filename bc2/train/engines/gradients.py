"""Gradients of a backward pass: in fp32 as they come, and summed over the replicas meanwhile.

A bf16 weight's gradient is added to its master's as soon as autograd has it, and freed. With
several replicas fp32 gradients lie in buckets, as in PyTorch's DDP (Li et al. 2020, arXiv
2006.15704): during the backward pass of a step's last micro-batch a bucket is all-reduced when
its last gradient has come, while those of earlier layers are still computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from bc2.parallel.mesh import Group

#: fp32 gradients that are all-reduced at once. A larger one is a bucket of its own.
BUCKET_BYTES = 64 << 20

#: Numbers; each gradient of a bucket begins at a multiple: 256 bytes, for vectorized kernels.
ALIGNMENT = 64


class Gradients:
    """The fp32 gradients of one replica's step.

    Args:
        pairs: parameters of the forward pass in the model's order, each with the fp32 master
            that the optimizer updates; the parameter itself where it is fp32.
    """

    def __init__(self, pairs: Iterable[tuple[Parameter, Parameter]]):
        for parameter, master in pairs:
            if parameter is not master:
                _when_it_has_come(parameter, partial(_widen, master))

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """The block is a backward pass, `last` of the step or not."""
        yield

    def finish(self) -> None:
        """After the step's last backward pass: have the sums over the replicas."""

    def discard(self) -> None:
        """Forget the step, also in the middle of it. The gradients are dropped by the engine."""


def _when_it_has_come(parameter: Parameter, act: Callable[[Parameter], None]) -> None:
    """Call `act` each time that a backward pass has added to the gradient of a parameter."""
    parameter.register_post_accumulate_grad_hook(act)  # type: ignore[no-untyped-call]


def _widen(master: Parameter, parameter: Parameter) -> None:
    """Add a bf16 gradient that has just come to the master's in fp32, and free it."""
    grad, parameter.grad = parameter.grad, None
    assert grad is not None
    if master.grad is None:
        master.grad = grad.float()
    else:
        master.grad.add_(grad)


class SummedGradients(Gradients):
    """The same over several replicas.

    All ranks all-reduce the same buckets in the same order, whatever order their gradients
    come in: collectives are matched by it.
    """

    def __init__(self, pairs: Iterable[tuple[Parameter, Parameter]], replicas: Group):
        self._replicas = replicas
        # Backward passes come to the last layers first.
        backward = list(pairs)[::-1]
        self._buckets = [_Bucket(masters) for masters in _grouped([m for _, m in backward])]
        bucket_of = {master: bucket for bucket in self._buckets for master in bucket.masters}
        for parameter, master in backward:
            _when_it_has_come(parameter, partial(self._arrived, bucket_of[master], master))
        self._last = False
        self._next = 0
        """The number of the bucket to be all-reduced next."""
        self._works: list[Any] = []

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        self._last = last
        yield
        self._last = False

    def _arrived(self, bucket: _Bucket, master: Parameter, parameter: Parameter) -> None:
        bucket.take(master, parameter)
        if self._last:
            bucket.missing -= 1
            self._reduce_full()

    def _reduce_full(self) -> None:
        """Begin to all-reduce the buckets that are full, as far as those before them are."""
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._reduce(self._buckets[self._next])

    def _reduce(self, bucket: _Bucket) -> None:
        flat = bucket.whole()
        self._works.append(dist.all_reduce(flat, group=self._replicas.handle, async_op=True))
        self._next += 1

    def finish(self) -> None:
        # A weight that no micro-batch of this rank has used may have a gradient elsewhere.
        for bucket in self._buckets[self._next :]:
            self._reduce(bucket)
        for work in self._works:
            work.wait()
        self._works.clear()

    def discard(self) -> None:
        # Unfinished sums are not waited for: after an error the other ranks may never make them.
        self._works.clear()
        self._next, self._last = 0, False
        for bucket in self._buckets:
            bucket.empty()


class _Bucket:
    """Gradients next to each other in memory. Memory is taken when the first one comes."""

    def __init__(self, masters: Sequence[Parameter]):
        self.masters = masters
        self.missing = len(masters)
        """Gradients of the step's last backward pass that have not come."""
        self._begins = dict(zip(masters, _begins(masters), strict=True))
        self._flat: Tensor | None = None

    def take(self, master: Parameter, parameter: Parameter) -> None:
        """Add a gradient that has just come, fp32 or not."""
        if len(self.masters) == 1:
            if parameter is not master:
                _widen(master, parameter)
            return
        place = self._place(master)
        grad = parameter.grad
        assert grad is not None
        if parameter is not master:
            parameter.grad = None
            if master.grad is None:
                master.grad = place.copy_(grad)
            else:
                master.grad.add_(grad)
        elif grad.data_ptr() != place.data_ptr():
            # The step's first. Autograd adds the others to it where it is.
            master.grad = place.copy_(grad)

    def whole(self) -> Tensor:
        """All gradients as one tensor; zeros for those that have not come."""
        for master in self.masters:
            if master.grad is None:
                alone = len(self.masters) == 1
                place = torch.empty_like(master) if alone else self._place(master)
                master.grad = place.detach().zero_()
        if self._flat is not None:
            return self._flat
        (master,) = self.masters
        assert master.grad is not None
        return master.grad

    def empty(self) -> None:
        self._flat = None
        self.missing = len(self.masters)

    def _place(self, master: Parameter) -> Tensor:
        if self._flat is None:
            last = self.masters[-1]
            size = self._begins[last] + last.numel()
            self._flat = torch.empty(size, dtype=torch.float32, device=master.device)
        begin = self._begins[master]
        return self._flat[begin : begin + master.numel()].view_as(master)


def _grouped(masters: Iterable[Parameter]) -> list[list[Parameter]]:
    """Masters in buckets of at most `BUCKET_BYTES`, in their order; larger ones alone."""
    groups: list[list[Parameter]] = []
    room = 0
    for master in masters:
        size = 4 * master.numel()
        if size > room:
            groups.append([])
            room = max(BUCKET_BYTES, size)
        groups[-1].append(master)
        room -= size
    return groups


def _begins(masters: Iterable[Parameter]) -> Iterator[int]:
    """Where each gradient begins in its bucket, in numbers."""
    at = 0
    for master in masters:
        yield at
        at += -(-master.numel() // ALIGNMENT) * ALIGNMENT
