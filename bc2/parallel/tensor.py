"""Tensor parallelism: one model's matrices over a few ranks, after Megatron-LM.

Attention is cut by heads and the feed-forward by channels (arXiv 1909.08053, section 3), the
embedding and a language head by the vocabulary; a head of values is whole on every rank. The
model's code is not changed: its matrices are replaced by parts, and hooks around its modules run
the collectives. A layer sums over the ranks twice forward and twice backward; the logits are never
gathered in training.

Adapters of low rank are divided with the weight that they stand beside. Where it is cut by its
outputs, B is, and every rank has A; where by its inputs, A is, and every rank has B. Either way
s B A x of a rank adds to what its part of the weight says, and no further sum is needed forward.
Backward, the whole factor gets a partial gradient on each rank, and these are summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bc2.model.heads import Head
from bc2.model.lora import Lora, low_rank
from bc2.model.transformer import Embedding, Layer, Linear, RMSNorm, Transformer, rms_norm
from bc2.parallel.mesh import Group, call_uncompiled
from bc2.parallel.sharding import ROW_PARALLEL, shard_of


def cut_tensors(model: Transformer, group: Group) -> None:
    """Replace a model's matrices by this rank's parts.

    Args:
        model: best on the meta device; weights that it has are cut too.
        group: the ranks that share it. Sizes must divide: `check_layout`.
    """
    if group.size == 1:
        return
    for name, parameter in list(model.named_parameters()):
        part = shard_of(
            name, tuple(parameter.shape), group.rank, group.size,
            heads_per_key=model.config.heads_per_key,
        )  # fmt: skip
        if part.dim is None:
            continue
        mine = nn.Parameter(part.of(parameter.detach()).contiguous(), parameter.requires_grad)
        mine.model_parallel = True  # type: ignore[attr-defined]  # by this DeepSpeed knows it
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, mine)
    vocabulary = Vocabulary(group, model.config.vocab_size)
    rows = model.model.embed_tokens.weight
    assert isinstance(rows, nn.Parameter)
    if isinstance(model.head, Head):
        model.head.shard = vocabulary
    model.model.embed_tokens = ShardedEmbedding(rows, vocabulary)
    for layer in model.model.layers:
        assert isinstance(layer, Layer)
        _cut_layer(layer, group, model.config.num_heads)


def _cut_layer(layer: Layer, group: Group, heads: int) -> None:
    share = heads // group.size
    attention = layer.self_attn
    attention.heads = slice(group.rank * share, (group.rank + 1) * share)
    if attention.q_norm is not None and attention.k_norm is not None:
        attention.q_norm = SharedNorm(attention.q_norm, group)
        attention.k_norm = SharedNorm(attention.k_norm, group)
    for name, module in layer.named_modules():
        if isinstance(module, Linear) and isinstance(module.adapter, Lora):
            by_inputs = name.rpartition(".")[2] in ROW_PARALLEL
            module.adapter = SharedLora(module.adapter, group, by_inputs=by_inputs)

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_enter(args[0], group), *args[1:])

    def leave(_: nn.Module, __: tuple[Any, ...], out: Tensor) -> Tensor:
        return _leave(out, group)

    for entered in (layer.self_attn, layer.mlp):
        entered.register_forward_pre_hook(enter)
    for left in (layer.self_attn.o_proj, layer.mlp.down_proj):
        left.register_forward_hook(leave)


@dataclass(frozen=True)
class Vocabulary:
    """The rows of a whole vocabulary that this rank has: `softmax.VocabularyShard`."""

    group: Group
    size: int

    @property
    def rows(self) -> int:
        return self.size // self.group.size

    @property
    def first(self) -> int:
        return self.group.rank * self.rows

    def all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        return self.group.all_reduce(x, op)


class ShardedEmbedding(Embedding):
    """An embedding cut by the vocabulary: the rank that has a token's row looks it up.

    The sum over the ranks adds zeros to that row, so it is exact.
    """

    def __init__(self, weight: nn.Parameter, vocabulary: Vocabulary):
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx = self.max_norm = None
        self.scale_grad_by_freq = self.sparse = False
        self.norm_type = 2.0
        self.weight = weight
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor) -> Tensor:  # [T] -> [T, D]
        local = tokens - self.vocabulary.first
        elsewhere = (local < 0) | (local >= self.vocabulary.rows)
        found = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        found = found.masked_fill(elsewhere[:, None], 0.0)
        return _leave(found, self.vocabulary.group)


class SharedNorm(RMSNorm):
    """A norm of this rank's heads alone: the gradient of its weight is summed over the ranks."""

    def __init__(self, norm: RMSNorm, group: Group):
        nn.Module.__init__(self)
        self.weight = norm.weight
        self.eps = norm.eps
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, _enter(self.weight, self.group), self.eps)


class SharedLora(Lora):
    """A rank's part of an adapter: the gradient of its whole factor is summed over the ranks.

    Args:
        lora: of which one factor is cut already.
        by_inputs: whether that is A, and the whole one B.
    """

    def __init__(self, lora: Lora, group: Group, *, by_inputs: bool):
        nn.Module.__init__(self)
        self.scale = lora.scale
        self.lora_A = lora.lora_A
        self.lora_B = lora.lora_B
        self.group = group
        self.by_inputs = by_inputs

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A, self.lora_B
        if self.by_inputs:
            return low_rank(x, a, _enter(b, self.group), self.scale)
        return low_rank(x, _enter(a, self.group), b, self.scale)


class _Enter(torch.autograd.Function):
    """From what all ranks have into their parts: the identity, and gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.all_reduce(grad.contiguous()), None


class _Leave(torch.autograd.Function):
    """From the parts to their sum; the gradient of the sum is that of each part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.all_reduce(x.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _enter(x: Tensor, group: Group) -> Tensor:
    return call_uncompiled(_Enter.apply, x, group)


def _leave(x: Tensor, group: Group) -> Tensor:
    return call_uncompiled(_Leave.apply, x, group)
