"""The head's weight as NormHead uses it, and its gradient.

Shapes:
    V  vocabulary      D  hidden size      C  tokens of a chunk

Every function here passes over the [V, D] weight once or twice and computes little for each
element. Compiled, one pass does all operations; otherwise the operations run on one block of rows
at a time, so that each finds the result of the last one in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bc2.model.head_sizes import weight_rows

#: A row that is shorter than this is divided by this instead of by its length.
SHORTEST = 1e-12


def head_rows(
    weight: Tensor, dtype: torch.dtype, norm_head: bool, *, compiled: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weight that logits are computed with (Baichuan 2, section 2.5: NormHead).

    Args:
        weight: the raw parameter [V, D].
        norm_head: scale each row to unit length.
        compiled: use torch.compile.

    Returns:
        The rows in `dtype` [V, D]; and, with `norm_head`, the lengths of the raw rows [V, 1] in
        fp32 or wider, else None.
    """
    if not norm_head:
        return weight.to(dtype), None
    wide = at_least_fp32(dtype)
    if compiled:
        rows, lengths = _compiled(_unit)(weight, dtype, wide)
        return rows, lengths
    unit = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    lengths = torch.empty(len(weight), 1, dtype=wide, device=weight.device)
    for span in spans(len(weight), weight_rows(weight.device.type)):
        unit[span], lengths[span] = _unit(weight[span], dtype, wide)
    return unit, lengths


class WeightGradient:
    """The gradient of the head's weight: dlogitsᵀ hidden, summed over chunks.

    The sum is in fp32 or wider, whatever the dtype of the products.
    """

    def __init__(self, head: Tensor, *, compiled: bool = False):
        self.total: Tensor | None = None
        self.shape = head.shape
        self.compiled = compiled

    def add(self, logits: Tensor, hidden: Tensor) -> None:  # [C, V], [C, D]
        """Add a chunk, given by the gradient of its logits and its hidden states."""
        wide, first = at_least_fp32(logits.dtype), self.total is None
        if logits.dtype == wide:
            # Of the same dtype, so the product itself can add.
            if self.total is None:
                self.total = torch.mm(logits.t(), hidden)
            else:
                self.total.addmm_(logits.t(), hidden)
        elif logits.device.type != "cpu":
            self._add_unrounded(logits, hidden, wide)
        else:
            if self.total is None:
                make = torch.zeros if self.compiled else torch.empty
                self.total = make(self.shape, dtype=wide, device=hidden.device)
            self._add_on_cpu(self.total, logits, hidden, first)

    def _add_unrounded(self, logits: Tensor, hidden: Tensor, wide: torch.dtype) -> None:
        """Add a product that a GPU gives in fp32 itself, by blocks: the sum needs a copy of it."""
        if self.total is None:
            self.total = torch.mm(logits.t(), hidden, out_dtype=wide)
            return
        for span in spans(self.shape[0], weight_rows(logits.device.type)):
            self.total[span] += torch.mm(logits[:, span].t(), hidden, out_dtype=wide)

    def _add_on_cpu(self, total: Tensor, logits: Tensor, hidden: Tensor, first: bool) -> None:
        """Add a product by blocks of rows, each of which is still in the cache when it is added."""
        across = hidden.t().contiguous() if self.compiled else hidden
        for span in spans(self.shape[0], weight_rows("cpu")):
            if self.compiled:
                # The transposed product is faster, and compiled code adds a transposed matrix as
                # fast as a plain one.
                _compiled(_add_across)(total[span], torch.mm(across, logits[:, span]))
            elif first:
                total[span] = torch.mm(logits[:, span].t(), hidden)
            else:
                total[span] += torch.mm(logits[:, span].t(), hidden)

    def of(self, weight: Tensor, lengths: Tensor | None, scale: Tensor) -> Tensor:
        """The gradient of the raw weight [V, D] times `scale`; it uses up the sum.

        Args:
            weight: the raw parameter [V, D].
            lengths: of its rows, from `head_rows`; None if they were not scaled.
            scale: the upstream gradient, a scalar.

        Returns:
            [V, D] in the weight's dtype.
        """
        total, self.total = self.total, None
        if total is None:
            return torch.zeros_like(weight)
        if lengths is not None and self.compiled:
            _compiled(_through_normalization)(total, weight, lengths, scale)
            return total.to(weight.dtype)
        result = total if weight.dtype == total.dtype else torch.empty_like(weight)
        for span in spans(len(weight), weight_rows(weight.device.type)):
            grad = total[span]
            if lengths is None:
                grad.mul_(scale)
            else:
                _through_normalization(grad, weight[span], lengths[span], scale)
            if result is not total:
                result[span] = grad
        return result


def spans(total: int, size: int) -> Iterator[slice]:
    """Slices of length `size` that cover 0 to `total`; the last one may be shorter."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """fp32 for 16-bit dtypes, else `dtype` itself."""
    return torch.promote_types(dtype, torch.float32)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # A graph for each shape: there are few, and a graph for all of them may round differently.
    return torch.compile(function, dynamic=False)


def _unit(weight: Tensor, dtype: torch.dtype, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows scaled to unit length in `dtype`, and the lengths that they had in `wide`."""
    rows = weight.to(wide)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=SHORTEST)
    return (rows / lengths).to(dtype), lengths


def _add_across(total: Tensor, product: Tensor) -> None:
    total.add_(product.t())


def _through_normalization(grad: Tensor, weight: Tensor, lengths: Tensor, scale: Tensor) -> None:
    """Turn the gradient g of unit rows into that of the raw rows w of lengths l, in place.

    It is scale (g - (g·w) w / l²) / l.
    """
    rows = weight.to(grad.dtype)
    along = torch.linalg.vecdot(grad, rows)[:, None] / lengths.square()
    # A row of length 0 was divided by a constant, so there is no component to project away.
    along = along.masked_fill(lengths <= SHORTEST, 0.0)
    grad.addcmul_(along, rows, value=-1.0).mul_(scale / lengths)
