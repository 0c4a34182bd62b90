"""What one rank has of a model and of a micro-batch, and the bytes that autograd keeps of it.

The sizes follow `bc2.model.transformer` and the buffers of `bc2.model.head_loss`; a test
counts the kept tensors, so that a change there that is not followed here is seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from bc2.model.head_sizes import BLOCK_BYTES, WEIGHT_ROWS, chunk_size
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.precision import Precision


@dataclass(frozen=True)
class Share:
    """What one rank has of a model and of a micro-batch."""

    model: ModelConfig
    layout: ParallelConfig
    world: int
    micro_batch: int
    length: int
    precision: Precision
    device: str

    @property
    def size(self) -> int:
        """Bytes of a number in the layers."""
        return 2 if self.precision == "bf16" else 4

    @property
    def replicas(self) -> int:
        """Ranks with the same part of the model, which ZeRO divides by."""
        return max(1, self.world // self.layout.tensor)

    @cached_property
    def matrix(self) -> int:
        """Elements of the embedding's part, and of the head's."""
        return self.model.vocab_size * self.model.hidden_size // self.layout.tensor

    @cached_property
    def params(self) -> int:
        norms = (2 * self.model.num_layers + 1) * self.model.hidden_size
        return (self.model.num_params() - norms) // self.layout.tensor + norms

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        model = self.model
        packed = max(model.intermediate_size, 3 * model.hidden_size) * model.hidden_size
        return max(self.matrix, packed // self.layout.tensor)

    @property
    def tokens(self) -> int:
        """Of a micro-batch, those that go through this rank's layers."""
        return self.all_tokens // self.layout.sequence

    @property
    def all_tokens(self) -> int:
        return self.micro_batch * self.length

    @property
    def heads(self) -> int:
        """Heads that this rank attends with."""
        return max(1, self.model.num_heads // (self.layout.tensor * self.layout.sequence))


@dataclass(frozen=True)
class Activations:
    """Bytes of the forward and backward pass."""

    kept: int
    segment: int
    """Of the layers that are computed again together; of one layer without checkpointing."""
    work: int
    """Gradients inside a layer while its backward pass runs."""
    layers: int
    """In a segment."""
    again: bool
    """Whether segments are computed again."""


def activations_of(share: Share, checkpointing: int) -> Activations:
    model = share.model
    layer = layer_bytes(share)
    segment = min(checkpointing, model.num_layers)
    kept = layer * model.num_layers
    if segment:
        inputs = math.ceil(model.num_layers / segment)
        kept = share.tokens * share.size * model.hidden_size * inputs
    return Activations(
        kept=kept + _shared_bytes(share),
        segment=layer * max(1, segment),
        work=_work_bytes(share),
        layers=max(1, segment),
        again=segment > 0,
    )


def layer_bytes(share: Share) -> int:
    """What a layer keeps of a micro-batch."""
    norms = 2 * _norm_bytes(share.model, share.size)
    # gate, its silu, up, their product
    feed_forward = 4 * share.size * share.model.intermediate_size // share.layout.tensor
    return share.tokens * (norms + feed_forward + _attention_bytes(share))


def _attention_bytes(share: Share) -> int:
    """Of each token."""
    model, size = share.model, share.size
    wide = model.hidden_size // share.layout.tensor
    mixed = size * wide  # what attention gives to o_proj
    if share.layout.sequence > 1:
        mixed *= 2  # before and after it is exchanged
    if model.position == "alibi" and share.device == "cpu":
        # No kernel there takes a bias and trains: q, k, v and all probabilities, in fp32.
        heads = share.heads * share.layout.sequence
        return mixed + 12 * wide + 4 * heads * share.length
    rotated = 2 * size * wide if model.position == "rope" else 0
    # And a sum of exponentials a head.
    return mixed + rotated + 3 * size * wide + 4 * model.num_heads // share.layout.tensor


def _norm_bytes(model: ModelConfig, size: int) -> int:
    """RMSNorm, a token: the input in fp32, its scale, the normalised input, and the output."""
    return (4 + 2 * size) * model.hidden_size + 4


def _shared_bytes(share: Share) -> int:
    """What the whole model keeps beside its layers."""
    model, size = share.model, share.size
    rotary = 8 * model.head_dim if model.position == "rope" else 0
    # The last norm's output is the head's input, which the head does not keep.
    norm = _norm_bytes(model, size) - size * model.hidden_size
    return share.all_tokens * (8 + rotary) + share.tokens * norm


def _work_bytes(share: Share) -> int:
    """Gradients of the feed-forward's two factors and of its input; or of attention's scores."""
    model, size = share.model, share.size
    wide = model.intermediate_size // share.layout.tensor
    work = share.tokens * size * 2 * (wide + model.hidden_size)
    if model.position == "alibi" and share.device == "cpu":
        work = max(work, 8 * share.all_tokens * share.heads * share.length)
    return work


def head_bytes(share: Share) -> int:
    """The logits' buffer, the unit rows, the gradients that wait for the backward pass."""
    return _head_buffers(share) + 4 * share.matrix + hidden_gradient(share)


def hidden_gradient(share: Share) -> int:
    return share.size * share.tokens * share.model.hidden_size


def _head_buffers(share: Share) -> int:
    model, size, tokens = share.model, share.size, share.tokens
    vocabulary = model.vocab_size // share.layout.tensor
    chunk = chunk_size(tokens, vocabulary, size, share.device)
    blocks = 2 * min(BLOCK_BYTES, tokens * vocabulary * 4)
    product = min(vocabulary, WEIGHT_ROWS) * model.hidden_size
    # Without NormHead a weight is used as it is, unless its type must change.
    unit = share.matrix if model.norm_head or (size == 2 and not share.layout.zero) else 0
    return min(tokens, chunk) * vocabulary * size + size * (unit + product) + blocks
