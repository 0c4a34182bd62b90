"""The head's weight as NormHead uses it, and its gradient.

Shapes:
    V  vocabulary      D  hidden size      C  tokens of a chunk

Everything here passes over [V, D] once or twice and computes little: compiled, a pass does all
of it at once; else it goes by rows, so that what one operation leaves is in the cache for the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bc2.model.head_sizes import WEIGHT_ROWS

#: A row that is shorter is divided by this instead of its length.
SHORTEST = 1e-12


def head_rows(
    weight: Tensor, dtype: torch.dtype, norm_head: bool, *, compiled: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weight as used in `dtype` [V, D]; and its rows' lengths [V, 1] if it is a NormHead."""
    if not norm_head:
        return weight.to(dtype), None
    wide = at_least_fp32(dtype)
    if compiled:
        rows, lengths = _compiled(_unit)(weight, dtype, wide)
        return rows, lengths
    unit = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    lengths = torch.empty(len(weight), 1, dtype=wide, device=weight.device)
    for span in spans(len(weight), WEIGHT_ROWS):
        unit[span], lengths[span] = _unit(weight[span], dtype, wide)
    return unit, lengths


class WeightGradient:
    """Σ over chunks of dlogitsᵀ hidden, in fp32 or better whatever the products are in."""

    def __init__(self, head: Tensor, *, compiled: bool = False):
        self.total: Tensor | None = None
        self.shape = head.shape
        self.compiled = compiled

    def add(self, logits: Tensor, hidden: Tensor) -> None:  # [C, V], [C, D]
        """Take in a chunk: the gradient of its logits, and its hidden states."""
        first = self.total is None
        if self.total is None:
            make = torch.zeros if self.compiled else torch.empty
            wide = at_least_fp32(logits.dtype)
            self.total = make(self.shape, dtype=wide, device=hidden.device)
        across = hidden.t().contiguous() if self.compiled else hidden
        for span in spans(self.shape[0], WEIGHT_ROWS):
            # By rows of the weight: what is added is still in the cache.
            if self.compiled:
                # A CPU's product is faster so, and the compiler adds as fast across as along.
                _compiled(_add_across)(self.total[span], torch.mm(across, logits[:, span]))
            elif first:
                self.total[span] = torch.mm(logits[:, span].t(), hidden)
            else:
                self.total[span] += torch.mm(logits[:, span].t(), hidden)

    def of(self, weight: Tensor, lengths: Tensor | None, scale: Tensor) -> Tensor:
        """The gradient of the raw weight, times scale, in the weight's dtype; ends this sum."""
        total, self.total = self.total, None
        if total is None:
            return torch.zeros_like(weight)
        if lengths is not None and self.compiled:
            _compiled(_through_normalization)(total, weight, lengths, scale)
            return total.to(weight.dtype)
        result = total if weight.dtype == total.dtype else torch.empty_like(weight)
        for span in spans(len(weight), WEIGHT_ROWS):
            grad = total[span]
            if lengths is None:
                grad.mul_(scale)
            else:
                _through_normalization(grad, weight[span], lengths[span], scale)
            if result is not total:
                result[span] = grad
        return result


def spans(total: int, size: int) -> Iterator[slice]:
    """0 to `total` in pieces of `size`, the last one shorter."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # For each shape anew: there are few, and a graph for all of them may round differently.
    return torch.compile(function, dynamic=False)


def _unit(weight: Tensor, dtype: torch.dtype, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows at unit length, and how long they were."""
    rows = weight.to(wide)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=SHORTEST)
    return (rows / lengths).to(dtype), lengths


def _add_across(total: Tensor, product: Tensor) -> None:
    total.add_(product.t())


def _through_normalization(grad: Tensor, weight: Tensor, lengths: Tensor, scale: Tensor) -> None:
    """Gradient of unit rows -> gradient of the rows, in place: scale (g - (g·w) w / l²) / l."""
    rows = weight.to(grad.dtype)
    along = torch.linalg.vecdot(grad, rows)[:, None] / lengths.square()
    # A row of no length is divided by a constant: nothing is projected away.
    along = along.masked_fill(lengths <= SHORTEST, 0.0)
    grad.addcmul_(along, rows, value=-1.0).mul_(scale / lengths)
