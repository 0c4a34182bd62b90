"""What training takes in memory, worked out from the shape; and what there is.

The sizes follow the code: the tensors that autograd keeps of `bc2.model.transformer`, the
buffers of `bc2.model.head_loss`, the copies of `bc2.train.engines.local`. A test counts the
kept tensors, so that a change there that is not followed here is seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil
import torch

from bc2.model.config import ModelConfig
from bc2.model.head_loss import BLOCK_BYTES, WEIGHT_ROWS, chunk_size
from bc2.train.device import Precision

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by what they are for."""

    weights: int
    """fp32 weights, and the bf16 copy of the layers in bf16."""
    moments: int
    """AdamW's two."""
    gradients: int
    """fp32, of all weights: what an optimizer step sees."""
    transient: int
    """A micro-batch's bf16 gradients before they are added to those."""
    activations: int
    """Kept by the forward pass for the backward pass."""
    recomputed: int
    """Of one segment, computed again in the backward pass; 0 without checkpointing."""
    head: int
    """Buffers and gradients of the head's loss, which runs between the two."""
    accumulated: bool
    """Whether gradients of earlier micro-batches are there from the beginning."""

    @property
    def total(self) -> int:
        """The most that is held at once."""
        lasting = self.weights + self.moments
        grads = self.gradients + self.transient
        earlier = self.gradients if self.accumulated else 0
        in_head = earlier + self.activations + self.head
        in_backward = max(earlier, self.transient) + self.activations + self.recomputed
        return lasting + max(in_head, in_backward, grads)


def estimate(
    model: ModelConfig,
    rows: int,
    sequence_length: int,
    precision: Precision,
    checkpointing: int,
    *,
    device: str = "cpu",
    accumulated: bool = False,
) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full rows.

    Args:
        rows: sequences of a micro-batch.
        sequence_length: tokens of each, one document.
        checkpointing: layers in a segment; 0: nothing is computed again.
        device: the head's buffers are larger on a GPU.
        accumulated: a step has several micro-batches.
    """
    size = 2 if precision == "bf16" else 4
    params = model.num_params()
    halved = params - 2 * model.vocab_size * model.hidden_size if size == 2 else 0
    tokens = rows * sequence_length
    layer = tokens * _layer_bytes(model, size, sequence_length, device)
    segment = min(checkpointing, model.num_layers)
    kept = layer * model.num_layers
    if segment:
        kept = tokens * size * model.hidden_size * math.ceil(model.num_layers / segment)
    return MemoryEstimate(
        weights=4 * params + 2 * halved,
        moments=8 * params,
        gradients=4 * params,
        transient=2 * halved,
        activations=kept + tokens * _shared_bytes(model, size),
        recomputed=layer * segment,
        head=_head_bytes(model, tokens, size, device),
        accumulated=accumulated,
    )


def _layer_bytes(model: ModelConfig, size: int, sequence_length: int, device: str) -> int:
    """What a layer keeps of each token; `size` is the bytes of a number in it."""
    norms = 2 * _norm_bytes(model, size)
    feed_forward = 4 * size * model.intermediate_size  # gate, its silu, up, their product
    return norms + feed_forward + _attention_bytes(model, size, sequence_length, device)


def _attention_bytes(model: ModelConfig, size: int, sequence_length: int, device: str) -> int:
    mixed = size * model.hidden_size  # what attention gives to o_proj
    if model.position == "alibi" and device == "cpu":
        # No kernel there takes a bias and trains: q, k, v and all probabilities, in fp32.
        return mixed + 12 * model.hidden_size + 4 * model.num_heads * sequence_length
    rotated = 2 * size * model.hidden_size if model.position == "rope" else 0
    packed = 3 * size * model.hidden_size
    return mixed + rotated + packed + 4 * model.num_heads  # and a sum of exponentials a head


def _norm_bytes(model: ModelConfig, size: int) -> int:
    """RMSNorm: the input in fp32, its scale, the normalised input, and the output."""
    return (4 + 2 * size) * model.hidden_size + 4


def _shared_bytes(model: ModelConfig, size: int) -> int:
    """What the whole model keeps of each token beside its layers."""
    rotary = 8 * model.head_dim if model.position == "rope" else 0
    # The last norm's output is the head's input, which the head does not keep.
    return 8 + rotary + _norm_bytes(model, size) - size * model.hidden_size


def _head_bytes(model: ModelConfig, tokens: int, size: int, device: str) -> int:
    """The logits' buffer, the unit rows, the gradients that wait for the backward pass."""
    matrix = model.vocab_size * model.hidden_size
    row = model.vocab_size * size
    chunk = chunk_size(tokens, model.vocab_size, size, device)
    blocks = 2 * min(BLOCK_BYTES, tokens * model.vocab_size * 4)
    product = min(model.vocab_size, WEIGHT_ROWS) * model.hidden_size
    gradients = 4 * matrix + size * tokens * model.hidden_size
    buffers = min(tokens, chunk) * row + size * (matrix + product) + blocks
    return buffers + gradients


def host_available(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that this process can still take: of the machine, and of its control groups."""
    limits = list(_cgroup_room(cgroups, membership))
    return max(0, min([int(psutil.virtual_memory().available), *limits]))


def device_available(device: torch.device) -> int:
    """Bytes free on a GPU, or on the host."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return host_available()


def _cgroup_room(root: Path, membership: Path) -> Iterator[int]:
    """What the limits of this process's groups, and of those above them, leave."""
    if not membership.exists():
        return
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _rooms(root, path, *names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _rooms(root / "memory", path, *names)


def _rooms(root: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    group = PurePosixPath(path.lstrip("/"))
    for folder in dict.fromkeys([root / group, *(root / above for above in group.parents)]):
        try:
            most = (folder / limit).read_text().strip()
            used = int((folder / usage).read_text())
            kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except FileNotFoundError:  # the root has no limit; a container may not see the groups above
            continue
        if most != "max":
            # Pages of files that nobody uses are given back before memory runs out.
            yield int(most) - used + int(kept.get(cache, 0))
