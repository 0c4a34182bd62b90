"""What the engines hold of weights, optimizer states and gradients in each phase of a step.

The figures follow `bc2.train.engines.local` and DeepSpeed's three optimizers (0.19:
`bf16_optimizer.py`, `zero/stage_1_and_2.py`, `stage3.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bc2.train.engines.deepspeed_settings import BUCKET
from bc2.train.memory.shape import TrainingShape

#: Elements (DeepSpeed's `zero/config.py`: stage3_max_reuse_distance,
#: stage3_prefetch_bucket_size).
REUSE, PREFETCH = 1_000_000_000, 50_000_000

#: Bytes by what they are for.
BytesByPart = dict[str, int]


@dataclass(frozen=True)
class States:
    """What an engine holds of weights, moments and gradients."""

    lasting: BytesByPart
    """Held at any time."""
    gradients: int
    """fp32 gradients at an optimizer step."""
    earlier: int
    """Gradients of earlier micro-batches when the next one begins."""
    head: int
    """The head's gradient, during the backward pass of the layers."""
    arrived: BytesByPart
    """Held when the last gradient is computed, beside `lasting`."""
    reduced: BytesByPart
    """Held while ranks reduce gradients after that."""
    normed: BytesByPart
    """Held while the gradient's norm is taken."""
    updated: BytesByPart
    """Held while the optimizer runs and the ranks exchange the new weights."""
    gathered: int = 0
    """Weights gathered from other ranks, forward and backward."""
    passing: int = 0
    """Buffers used during the backward pass where one bucket does not hold all gradients."""
    host: int = 0


def local_states(shape: TrainingShape) -> States:
    """See `bc2.train.engines.local`."""
    params = shape.params
    halved = params - 2 * shape.matrix if shape.number_bytes == 2 else 0
    grads = {"gradients": 4 * params}
    return States(
        lasting={
            "weights": 4 * (params - halved) + 2 * halved,
            "master": 4 * halved,
            "moments": shape.state_bytes(params),
        },
        gradients=4 * params,
        earlier=4 * params if shape.accumulated else 0,
        head=0 if shape.accumulated else 4 * shape.matrix,
        # A bf16 gradient becomes fp32 and is freed as soon as it is there.
        arrived=grads,
        reduced=grads,
        normed=grads,
        updated=grads,
    )


def zero_states(shape: TrainingShape) -> States:
    """See `bc2.train.engines.deepspeed`."""
    if shape.layout.zero == 3:
        return _zero_3(shape)
    if shape.layout.zero == 1 and shape.number_bytes == 2 and not shape.layout.offload_optimizer:
        return _zero_1_bf16(shape)
    return _zero_1_2(shape)


def _partition(shape: TrainingShape) -> int:
    return -(-shape.params // shape.replicas)


def _optimized(shape: TrainingShape, part: int) -> BytesByPart:
    """fp32 weights and optimizer state of `part` parameters."""
    return {"master": 4 * part, "moments": shape.state_bytes(part)}


def _in_buckets(shape: TrainingShape, buckets: int) -> int:
    """Bytes of DeepSpeed's buckets: all of them on a GPU, on a CPU as far as they are used."""
    whole = buckets * BUCKET
    return shape.number_bytes * (whole if shape.device != "cpu" else min(shape.params, whole))


def _offloaded(shape: TrainingShape, part: int, parts: BytesByPart) -> tuple[BytesByPart, int]:
    """Lasting parts that stay on the device, and bytes that are offloaded to the host."""
    if not shape.layout.offload_optimizer:
        return parts, 0
    moved: BytesByPart = {
        name: parts.pop(name) for name in ("master", "moments", "gradients") if name in parts
    }
    moved.setdefault("gradients", 4 * part)
    held = sum(moved.values()) + shape.number_bytes * part
    buffers = parts.get("buffers", 0) + shape.number_bytes * shape.largest
    if shape.device == "cpu":
        return {**parts, **moved, "buffers": buffers + shape.number_bytes * part}, 0
    return {**parts, "buffers": buffers}, held


def _zero_1_bf16(shape: TrainingShape) -> States:
    """`BF16_Optimizer`: fp32 gradients of all weights, and bf16 ones until the step's end."""
    params, part = shape.params, _partition(shape)
    half = 2 * params
    # Tensors are concatenated to be reduced, unless the first one fills a bucket.
    joined = 4 * params if params <= BUCKET else 0
    shared = half if shape.device == "cpu" and shape.replicas > 1 else 0
    return States(
        lasting={
            "weights": half, **_optimized(shape, part), "gradients": 4 * params,
        },
        gradients=4 * params,
        earlier=half if shape.accumulated else 0,
        head=0 if shape.accumulated else 2 * shape.matrix,
        arrived={"gradients": half},
        reduced={"gradients": half, "buffers": joined + half},
        normed={"gradients": half},
        updated={"gradients": half, "buffers": shared},
    )  # fmt: skip


def _zero_1_2(shape: TrainingShape) -> States:
    """`DeepSpeedZeroOptimizer`: buckets are reduced, and each rank keeps its part."""
    params, part, size = shape.params, _partition(shape), shape.number_bytes
    bucket = _in_buckets(shape, 2 if shape.layout.overlap else 1)
    joined = size * min(params, BUCKET)
    mine = 4 * part if shape.layout.zero == 2 else 0
    earlier = mine if shape.layout.zero == 2 else size * params
    own = mine if shape.accumulated or size == 2 else 0
    shared = size * params if shape.device == "cpu" else 0
    kept: BytesByPart = {
        "weights": size * params,
        **_optimized(shape, part),
    }
    lasting, host = _offloaded(shape, part, kept)
    if shape.layout.offload_optimizer:
        own = earlier = 0
    return States(
        lasting=lasting,
        gradients=4 * part,
        earlier=earlier if shape.accumulated else 0,
        head=size * shape.matrix,
        arrived={"gradients": own, "buffers": bucket},
        reduced={"gradients": own, "buffers": bucket + joined},
        normed={"gradients": 4 * part},
        updated={"gradients": 8 * part if not shared else 0, "buffers": shared},
        passing=bucket + joined if params > BUCKET else 0,
        host=host,
    )


def _zero_3(shape: TrainingShape) -> States:
    """`DeepSpeedZeroOptimizer_Stage3`: weights are gathered when they are needed."""
    params, part, size = shape.params, _partition(shape), shape.number_bytes
    joined = size * min(params, BUCKET)
    # Weights needed again within REUSE elements stay: those of the last layers.
    near = min(params, REUSE // 2 + PREFETCH + shape.matrix)
    group = shape.layout.zero_group
    again = size * -(-params // group) if group else 0
    kept: BytesByPart = {
        "weights": size * part + again, **_optimized(shape, part),
        "gradients": 4 * part, "buffers": _in_buckets(shape, 1),
    }  # fmt: skip
    lasting, host = _offloaded(shape, part, kept)
    # Gloo scatters a copy; NCCL's result becomes fp32.
    scattered = joined if shape.device == "cpu" else 4 * min(params, BUCKET) // shape.replicas
    return States(
        lasting=lasting,
        gradients=4 * part,
        earlier=0,
        head=0,
        arrived={},
        # The embedding and its gradient come last and are still held.
        reduced={"buffers": joined + scattered + 2 * size * shape.matrix},
        normed={},
        updated={"gradients": 0 if shape.layout.offload_optimizer else 4 * part},
        gathered=size * near,
        passing=joined + scattered if params > BUCKET else 0,
        host=host,
    )
