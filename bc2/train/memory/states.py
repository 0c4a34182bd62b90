"""What the engines hold of weights, optimizer states and gradients in each phase of a step.

The figures follow `bc2.train.engines.local` and DeepSpeed's three optimizers (0.19:
`bf16_optimizer.py`, `zero/stage_1_and_2.py`, `stage3.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bc2.train.engines.deepspeed_settings import BUCKET
from bc2.train.memory.shape import TrainingShape

#: Elements (DeepSpeed's `zero/config.py`: stage3_max_reuse_distance,
#: stage3_prefetch_bucket_size, sub_group_size).
REUSE, PREFETCH, SUB_GROUP = 1_000_000_000, 50_000_000, 1_000_000_000

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
    passing: BytesByPart = field(default_factory=dict)
    """Held from the first gradients of the last backward pass on, beside those of `earlier`."""
    host: int = 0
    """Bytes in the host's memory instead."""


def frozen_states(shape: TrainingShape) -> States:
    """See `bc2.train.engines.frozen`: weights in the type of the forward pass, and nothing else."""
    size, params = shape.number_bytes, shape.params
    if shape.layout.zero < 3:
        return _never_updated(size * params)
    group = shape.layout.zero_group
    copy = size * -(-params // group) if group else 0
    mine = size * -(-params // shape.replicas)
    return _never_updated(mine + copy, gathered=_near(shape))


def _never_updated(weights: int, gathered: int = 0) -> States:
    return States(
        lasting={"weights": weights}, gradients=0, earlier=0, head=0, arrived={}, reduced={},
        normed={}, updated={}, gathered=gathered,
    )  # fmt: skip


def local_states(shape: TrainingShape) -> States:
    """See `bc2.train.engines.local`."""
    # Embedding and head are their own masters, unless they are frozen.
    own = shape.trained_matrix + shape.trained_head if shape.number_bytes == 2 else 0
    trained = shape.trained_params
    grads = {"gradients": 4 * trained}
    return States(
        lasting={
            "weights": 4 * own + shape.number_bytes * (shape.params - own),
            "master": 4 * (trained - own) if shape.number_bytes == 2 else 0,
            "moments": shape.state_bytes(trained),
        },
        gradients=4 * trained,
        earlier=4 * trained if shape.accumulated else 0,
        head=_held_head(shape, 4),
        # A bf16 gradient becomes fp32 and is freed as soon as it is there.
        arrived=grads,
        reduced=grads,
        normed=grads,
        updated=grads,
    )


def _held_head(shape: TrainingShape, number_bytes: int) -> int:
    """The head's gradient, until it is added to that of earlier micro-batches.

    That of a tied head waits for the embedding's.
    """
    added = shape.accumulated and not shape.model.tied_head
    return 0 if added else number_bytes * shape.head_gradient


def zero_states(shape: TrainingShape) -> States:
    """See `bc2.train.engines.deepspeed`."""
    if shape.layout.zero == 3:
        return _zero_3(shape)
    if shape.layout.zero == 1 and shape.number_bytes == 2 and not shape.layout.offload_optimizer:
        return _zero_1_bf16(shape)
    return _zero_1_2_offloaded(shape) if shape.layout.offload_optimizer else _zero_1_2(shape)


def _partition(shape: TrainingShape) -> int:
    """Trained parameters whose states this rank has."""
    return -(-shape.trained_params // shape.replicas)


def _optimized(shape: TrainingShape, part: int) -> BytesByPart:
    """fp32 weights and optimizer state of `part` parameters."""
    return {"master": 4 * part, "moments": shape.state_bytes(part)}


def _in_buckets(shape: TrainingShape, number_bytes: int) -> int:
    """Bytes of DeepSpeed's buckets: all of them on a GPU, on a CPU as far as they are used."""
    buckets = 2 if shape.layout.overlap and shape.layout.zero < 3 else 1
    if shape.device == "cpu":
        return number_bytes * min(shape.trained_params, buckets * BUCKET)
    # The engine asks for no larger ones than it has parameters to train.
    return number_bytes * buckets * min(shape.trained_params, BUCKET)


def _passing(shape: TrainingShape, bucket: int, joined: int, kept: int) -> BytesByPart:
    """What the first gradients of a backward pass bring: buckets, and what a full one goes to.

    Args:
        kept: bytes of the buffer that reduced gradients are summed in.
    """
    if shape.trained_params > BUCKET:
        # The first bucket is full and reduced while most activations are held.
        return {"gradients": kept, "buffers": bucket + joined}
    return {"buffers": 0 if shape.device == "cpu" else bucket}


def _zero_1_bf16(shape: TrainingShape) -> States:
    """`BF16_Optimizer`: fp32 gradients of all weights, and bf16 ones until the step's end."""
    trained, part = shape.trained_params, _partition(shape)
    half = 2 * trained
    # Tensors are concatenated to be reduced, unless the first one fills a bucket.
    joined = 4 * trained if trained <= BUCKET else 0
    shared = half if shape.device == "cpu" and shape.replicas > 1 else 0
    return States(
        lasting={
            "weights": 2 * shape.params, **_optimized(shape, part), "gradients": 4 * trained,
        },
        gradients=4 * trained,
        earlier=half if shape.accumulated else 0,
        head=_held_head(shape, 2),
        arrived={"gradients": half},
        reduced={"gradients": half, "buffers": joined + half},
        normed={"gradients": half},
        updated={"gradients": half, "buffers": shared},
    )  # fmt: skip


def _zero_1_2(shape: TrainingShape) -> States:
    """`DeepSpeedZeroOptimizer`: buckets are reduced, and each rank keeps its part."""
    trained, part, size = shape.trained_params, _partition(shape), shape.number_bytes
    bucket, joined = _in_buckets(shape, size), size * min(trained, BUCKET)
    mine = 4 * part if shape.layout.zero == 2 else 0
    earlier = mine if shape.layout.zero == 2 else size * trained
    own = mine if shape.accumulated or size == 2 else 0
    # bf16 ones are summed in the flat fp32 buffer that is updated from; fp32 ones are flattened.
    flat = 4 * part if size == 2 else 8 * part
    shared = size * trained if shape.device == "cpu" else 0
    return States(
        lasting={"weights": size * shape.params, **_optimized(shape, part)},
        gradients=4 * part,
        earlier=earlier if shape.accumulated else 0,
        head=size * shape.head_gradient,
        arrived={"gradients": own, "buffers": bucket},
        reduced={"gradients": own, "buffers": bucket + joined},
        normed={"gradients": 4 * part},
        updated={"gradients": flat if not shared else 0, "buffers": shared},
        passing=_passing(shape, bucket, joined, 0 if shape.accumulated else own),
    )


def _zero_1_2_offloaded(shape: TrainingShape) -> States:
    """`DeepSpeedZeroOptimizer` with states on the host, where the update is made.

    Reduced bf16 gradients are summed in fp32 on the device (`_build_compact_grad_partition_buffer`)
    and go to the host after the last micro-batch; the buffer is freed after the update (`step`).
    fp32 ones go there after each (`async_accumulate_grad_in_cpu_via_gpu`). With ZeRO 1 those
    of all weights stay on the device until the last micro-batch, in fp32 (`grad_accum`), and pass
    through fp32 buckets (`_gradient_reduction_buffer_dtype`).
    """
    trained, part, size = shape.trained_params, _partition(shape), shape.number_bytes
    first, rounded = shape.layout.zero == 1, size == 2
    number = 4 if first else size
    bucket = _in_buckets(shape, number)
    # Tensors are concatenated to be reduced, and rounded to be sent.
    joined = (number + (size if number != size else 0)) * min(trained, BUCKET)
    kept = 4 * part if rounded else 0
    all_kept = 4 * trained if first else kept
    # With ZeRO 1 gradients of others' parts stay where they were reduced until the next step.
    large = sum(4 * size for size in (shape.trained_matrix, shape.trained_head) if size > BUCKET)
    left = bucket + large if first and rounded and shape.replicas > 1 else 0
    on_device: BytesByPart = {
        "weights": size * shape.params,
        "buffers": size * shape.largest_trained,  # temp_grad_buffer_for_gpu_offload
    }
    moved: BytesByPart = {**_optimized(shape, part), "gradients": 4 * part}
    if not rounded and not first and shape.accumulated:
        moved["gradients"] += 4 * part  # accumulated_grads_in_cpu
    rounding = size * part  # param_buffer_of_bit16_for_cpu_offload_groups
    held = sum(moved.values()) + rounding + size * shape.largest_trained
    shared = size * trained if shape.device == "cpu" else 0
    if shape.device == "cpu":
        on_device = {**on_device, **moved, "buffers": on_device["buffers"] + rounding}
    return States(
        lasting=on_device,
        gradients=4 * part,
        earlier=all_kept if shape.accumulated else 0,
        head=size * shape.head_gradient,
        arrived={"gradients": kept, "buffers": bucket},
        reduced={"gradients": kept, "buffers": bucket + joined},
        normed={"gradients": kept, "buffers": left},
        updated={"gradients": kept, "buffers": left + shared},
        passing=_passing(shape, bucket, joined, kept if first or not shape.accumulated else 0),
        host=0 if shape.device == "cpu" else held,
    )


def _near(shape: TrainingShape) -> int:
    """Bytes of gathered weights: what is needed again within REUSE elements, the last layers'."""
    return shape.number_bytes * min(shape.params, REUSE // 2 + PREFETCH + shape.head)


def _zero_3(shape: TrainingShape) -> States:
    """`DeepSpeedZeroOptimizer_Stage3`: weights are gathered when they are needed."""
    params, part, size = shape.params, _partition(shape), shape.number_bytes
    trained = shape.trained_params
    joined = size * min(trained, BUCKET)
    group = shape.layout.zero_group
    again = size * -(-params // group) if group else 0
    offload = shape.layout.offload_optimizer
    mine = size * -(-params // shape.replicas)
    lasting: BytesByPart = {"weights": mine + again, "buffers": _in_buckets(shape, size)}
    # Offloaded gradients are there twice: grad_partitions_flat_buffer, and what is updated from.
    states = {**_optimized(shape, part), "gradients": (8 if offload else 4) * part}
    host = 0
    if offload and shape.device != "cpu":
        # Updated weights are rounded there, a group of them at a time.
        host = sum(states.values()) + size * min(part, SUB_GROUP)
    else:
        lasting |= states
    # Gloo scatters a copy; NCCL's result becomes fp32.
    scattered = joined if shape.device == "cpu" else 4 * min(trained, BUCKET) // shape.replicas
    return States(
        lasting=lasting,
        gradients=4 * part,
        earlier=0,
        head=size * shape.head_gradient if shape.model.tied_head else 0,
        arrived={},
        # The embedding and its gradient come last and are still held.
        reduced={"buffers": joined + scattered + 2 * size * shape.trained_matrix},
        normed={},
        updated={"gradients": 0 if offload else 4 * part},
        gathered=_near(shape),
        passing={"buffers": joined + scattered} if trained > BUCKET else {},
        host=host,
    )
