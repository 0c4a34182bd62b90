"""The released Baichuan models, written out naively in float64 with their own names of weights.

Shapes:
    T  tokens      D  hidden size      H  heads      K  channels of a head      V  vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def logits(
    config: Mapping[str, Any], state: Mapping[str, Tensor], ids: Sequence[int], *, last: int = 0
) -> Tensor:
    """What the model says after each token of one text: [T, V].

    Args:
        config: what config.json holds.
        state: the released weights, of any dtype.
        last: after so many of the last tokens only.
    """
    weights = {name: tensor.double() for name, tensor in state.items()}
    x = weights["model.embed_tokens.weight"][torch.tensor(ids)]
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}."
        layer = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
        normed = _rms_norm(x, layer["input_layernorm.weight"], config["rms_norm_eps"])
        x = x + _attention(normed, layer, config) @ layer["self_attn.o_proj.weight"].T
        normed = _rms_norm(x, layer["post_attention_layernorm.weight"], config["rms_norm_eps"])
        gate = normed @ layer["mlp.gate_proj.weight"].T
        up = normed @ layer["mlp.up_proj.weight"].T
        x = x + (gate / (1 + torch.exp(-gate)) * up) @ layer["mlp.down_proj.weight"].T
    x = _rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])
    head = weights["lm_head.weight"]
    if "z_loss_weight" in config:  # Baichuan 2: NormHead
        head = head / head.pow(2).sum(dim=1, keepdim=True).sqrt()
    return x[-last:] @ head.T


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def _attention(x: Tensor, layer: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """[T, D] -> [T, D]: the rows of W_pack are all queries, then all keys, then all values."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    size, length = width // heads, len(x)
    pack = layer["self_attn.W_pack.weight"]
    q, k, v = (x @ pack[at : at + width].T for at in (0, width, 2 * width))
    rotary = "max_position_embeddings" in config  # the 13B have none, and ALiBi
    future = torch.ones(length, length).triu(1).bool()
    out = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        queries, keys = (
            (_rotate(q[:, own]), _rotate(k[:, own])) if rotary else (q[:, own], k[:, own])
        )
        scores = queries @ keys.T / math.sqrt(size)
        if not rotary:
            scores = scores + slopes(heads)[head] * torch.arange(length, dtype=torch.float64)
        out.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, own])
    return torch.cat(out, dim=-1)


def _rotate(x: Tensor) -> Tensor:
    """Turn channel n with channel n + K/2 by position · 10000^(-2n/K): [T, K]."""
    half = x.shape[1] // 2
    speeds = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(len(x), dtype=torch.float64)[:, None] * speeds
    one, other = x[:, :half], x[:, half:]
    return torch.cat(
        (one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()),
        dim=1,
    )


def slopes(heads: int) -> list[float]:
    """The released order of ALiBi's slopes: those of a power of two, then every other of twice."""
    below = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * (n + 1) / below) for n in range(below)]
    more = [2.0 ** (-8 * (n + 1) / (2 * below)) for n in range(0, 2 * below, 2)]
    return first + more[: heads - below]
