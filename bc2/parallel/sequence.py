"""Sequence parallelism: the tokens of a micro-batch over a few ranks (DeepSpeed-Ulysses).

Everything but attention works on single tokens, so each rank computes it for a contiguous slice
of the packed tokens. Around attention an all-to-all exchanges tokens for heads (Jacobs et al.
2023, arXiv 2309.14509): each rank then has all tokens of some heads, with the boundaries of
documents unchanged, and attends as one device does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bc2.model.transformer import Layer, Transformer
from bc2.parallel.mesh import Group, call_uncompiled


def cut_sequence(model: Transformer, group: Group) -> None:
    """Have a model compute only this rank's slice of the tokens that it is given.

    `Transformer.forward` still takes all tokens and boundaries; the hidden states that it
    returns are those of `own_tokens`.

    Args:
        group: the ranks that share the tokens; they have one set of weights (or, under
            tensor parallelism, one part of it). Heads and tokens must divide.
    """
    if group.size == 1:
        return

    def keep_own(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *rest = args
        return (tokens[own_tokens(len(tokens), group)], *rest)

    model.model.register_forward_pre_hook(keep_own)
    for layer in model.model.layers:
        assert isinstance(layer, Layer)
        attention = layer.self_attn
        attention.exchange = Ulysses(group)
        # Of the query heads; `check_layout` has seen that the key heads divide too.
        here = range(model.config.num_heads)[attention.heads]
        share = len(here) // group.size
        first = here.start + group.rank * share
        attention.heads = slice(first, first + share)


def own_tokens(total: int, group: Group) -> slice:
    """The slice of a micro-batch's tokens that this rank computes."""
    share = total // group.size
    return slice(group.rank * share, (group.rank + 1) * share)


@dataclass(frozen=True)
class Ulysses:
    """`bc2.model.transformer.Exchange` over a group of ranks."""

    group: Group

    def to_heads(self, x: Tensor, parts: tuple[int, ...]) -> Tensor:  # [T/n, H, K] -> [T, H/n, K]
        return call_uncompiled(_Exchange.apply, x, self.group, True, parts)

    def to_tokens(self, x: Tensor) -> Tensor:  # [T, H/n, K] -> [T/n, H, K]
        heads = x.shape[1] * self.group.size
        return call_uncompiled(_Exchange.apply, x, self.group, False, (heads,))


class _Exchange(torch.autograd.Function):
    """One all-to-all; its gradient is the opposite one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: Group, to_heads: bool, parts: tuple[int, ...]
    ) -> Tensor:
        ctx.group, ctx.to_heads, ctx.parts = group, to_heads, parts
        return _exchange(x, group, to_heads, parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.group, not ctx.to_heads, ctx.parts), None, None, None


def _exchange(x: Tensor, group: Group, to_heads: bool, parts: tuple[int, ...]) -> Tensor:
    """See `bc2.model.transformer.Exchange`; `parts` counts all heads of each kind."""
    ranks = group.size
    if to_heads:
        kinds = [kind.chunk(ranks, dim=1) for kind in x.split_with_sizes(parts, dim=1)]
        pieces = [torch.cat(share, dim=1) for share in zip(*kinds, strict=True)]
    else:
        pieces = list(x.chunk(ranks, dim=0))
    sent = torch.stack(pieces)  # [n, ...]: one piece for each rank
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=group.handle)
    if to_heads:
        return torch.cat(got.unbind(), dim=0)
    sizes = [part // ranks for part in parts]
    shares = [share.split_with_sizes(sizes, dim=1) for share in got.unbind()]
    return torch.cat([share[i] for i in range(len(parts)) for share in shares], dim=1)
