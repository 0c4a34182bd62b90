"""The bytes that autograd keeps of a micro-batch, and those of the head, on one rank.

The sizes follow `bc2.model.transformer` and the buffers of `bc2.model.head_loss`; a test
counts the tensors that are really kept, so that a change there that is not followed here is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bc2.model.attention_sizes import ALIBI_CHANNELS, PAD_TO
from bc2.model.head_sizes import block_rows, chunk_size, weight_rows
from bc2.train.memory.shape import TrainingShape

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig


@dataclass(frozen=True)
class Activations:
    """Bytes of the forward and backward pass."""

    kept: int
    segment: int
    """Of the layers of a segment; without checkpointing of one layer."""
    work: int
    """Gradients inside a layer while its backward pass runs."""
    layers: int
    """Layers in a segment."""
    again: bool
    """Whether segments are recomputed."""


def activations_of(shape: TrainingShape) -> Activations:
    """The activations of one micro-batch on one rank."""
    model = shape.model
    layer = layer_bytes(shape)
    segment = min(shape.checkpointing, model.num_layers)
    kept = layer * model.num_layers
    if segment:
        inputs = math.ceil(model.num_layers / segment)
        kept = shape.tokens * shape.number_bytes * model.hidden_size * inputs
    return Activations(
        kept=kept + _shared_bytes(shape),
        segment=layer * max(1, segment),
        work=_work_bytes(shape),
        layers=max(1, segment),
        again=segment > 0,
    )


def layer_bytes(shape: TrainingShape) -> int:
    """Bytes that a layer keeps of a micro-batch."""
    norms = 2 * _norm_bytes(shape.model, shape.number_bytes)
    # gate, its silu, up, their product
    feed_forward = 4 * shape.number_bytes * shape.model.intermediate_size // shape.layout.tensor
    return shape.tokens * (norms + feed_forward + _attention_bytes(shape))


def _attention_bytes(shape: TrainingShape) -> int:
    """Bytes that attention keeps of each token."""
    model, size = shape.model, shape.number_bytes
    heads, keys = (n // shape.layout.tensor for n in (model.num_heads, model.kv_heads))
    wide, narrow = heads * model.head_size, keys * model.head_size
    mixed = size * wide  # what attention gives to o_proj
    if shape.layout.sequence > 1:
        mixed *= 2  # before and after it is exchanged
    log_sum = 4 * heads  # of the exponentials of a head
    if model.position == "alibi":
        # q, k, v and the result with ALiBi's channels. flash-attn, where it is installed, keeps
        # them without.
        joined = 4 * _joined_bytes(shape) * (wide + heads * ALIBI_CHANNELS)
        return mixed + log_sum + joined + _head_norm_bytes(shape, heads + keys)
    rotated = size * (wide + narrow)
    # What W_pack gave has the values; else they are copied with the keys, for each query head.
    if narrow == wide:
        rotated += size * (wide + 2 * narrow)
    else:
        rotated += 2 * size * wide
    return mixed + log_sum + rotated + _head_norm_bytes(shape, heads + keys)


def _head_norm_bytes(shape: TrainingShape, heads: int) -> int:
    """Bytes that the norms of queries and keys keep of a token."""
    model, size = shape.model, shape.number_bytes
    if not model.qk_norm:
        return 0
    # The normalised ones, their scale, and what was normalised in fp32.
    kept = heads * (size * model.head_size + 4)
    if size == 2:
        return kept + heads * 4 * model.head_size
    # In fp32 that is what W_pack gave, which may be kept for the values already.
    plain = model.position == "rope" and model.kv_heads == model.num_heads
    packed = 4 * model.packed_rows // shape.layout.tensor
    return kept if plain else kept + packed


def _joined_bytes(shape: TrainingShape) -> int:
    """Bytes of a number of q, k and v with ALiBi's channels, which are fp32 on a CPU."""
    return 4 if shape.device == "cpu" else shape.number_bytes


def _norm_bytes(model: ModelConfig, size: int) -> int:
    """Bytes that RMSNorm keeps of a token: input and scale in fp32, normalised input, output."""
    return (4 + 2 * size) * model.hidden_size + 4


def _shared_bytes(shape: TrainingShape) -> int:
    """Bytes that the model keeps outside of its layers."""
    model, size = shape.model, shape.number_bytes
    table = 8 * model.head_size  # rotary
    if model.position == "alibi":
        # Its channels of queries and keys: only recomputation needs them after the forward pass.
        channels = 2 * model.num_heads * ALIBI_CHANNELS
        table = channels * _joined_bytes(shape) if shape.checkpointing else 0
    masks = _mask_bytes(shape)
    # The last norm's output is the head's input, which the head does not keep.
    norm = _norm_bytes(model, size) - size * model.hidden_size
    return shape.all_tokens * (8 + table) + shape.tokens * norm + masks


def _mask_bytes(shape: TrainingShape) -> int:
    """Of a sliding window's mask, which all layers share. Kernels for 16 bits on a GPU need none.

    A layer holds it also in a pass without gradients.
    """
    window, length = shape.model.sliding_window, shape.sequence_length
    if window is None or window >= length or (shape.device == "cuda" and shape.number_bytes == 2):
        return 0
    return shape.number_bytes * (math.ceil(length / PAD_TO) * PAD_TO) ** 2


def _work_bytes(shape: TrainingShape) -> int:
    """Gradients of the feed-forward's two factors and its input."""
    model, size = shape.model, shape.number_bytes
    wide = model.intermediate_size // shape.layout.tensor
    return shape.tokens * size * 2 * (wide + model.hidden_size)


def head_bytes(shape: TrainingShape) -> int:
    """What the head holds at most, between forward and backward pass.

    With language the logits' buffer, the normalised rows, and gradients kept for the backward pass.
    """
    if shape.model.head != "language":
        return _value_head_bytes(shape)
    return _head_buffers(shape) + 4 * shape.head_gradient + hidden_gradient(shape)


def _value_head_bytes(shape: TrainingShape) -> int:
    """Values and hidden states, each with its gradient, and the weight's if trained: all fp32.

    See `bc2.model.heads.ValueHead`.
    """
    model = shape.model
    numbers = 2 * shape.tokens * (model.head_rows + model.hidden_size) + shape.head_gradient
    if shape.number_bytes == 2 and (shape.layout.zero or not shape.head_gradient):
        numbers += shape.head  # DeepSpeed's weights are bf16, and frozen ones: a copy
    return 4 * numbers


def forward_bytes(shape: TrainingShape) -> tuple[int, int]:
    """What a pass without gradients holds at most: of a layer and beside layers, and of the head.

    Of a language head the logits' buffers, of another one its values and hidden states in fp32.
    """
    layer = layer_bytes(shape) + _shared_bytes(shape)
    if shape.model.head == "language":
        return layer, _head_buffers(shape)
    return layer, 4 * shape.tokens * (shape.model.head_rows + shape.model.hidden_size)


def hidden_gradient(shape: TrainingShape) -> int:
    return shape.number_bytes * shape.tokens * shape.model.hidden_size


def _head_buffers(shape: TrainingShape) -> int:
    model, size, tokens = shape.model, shape.number_bytes, shape.tokens
    vocabulary = model.vocab_size // shape.layout.tensor
    chunk = chunk_size(tokens, vocabulary, shape.device)
    rows = min(tokens, chunk, block_rows(vocabulary, 4, shape.device))
    blocks = (1 if size == 4 else 2) * 4 * rows * vocabulary
    # A product of 16-bit numbers is added to the gradient in fp32, which a GPU gives it in.
    number = {4: 0, 2: 2 if shape.device == "cpu" else 4}[size]
    product = number * min(vocabulary, weight_rows(shape.device)) * model.hidden_size
    if not shape.head_gradient:
        product = 0
    # Without NormHead a weight is used as it is, unless its type must change.
    wide = size == 2 and not shape.layout.zero and shape.head_gradient > 0
    unit = shape.matrix if model.norm_head or wide else 0
    return min(tokens, chunk) * vocabulary * size + size * unit + product + blocks
