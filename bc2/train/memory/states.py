"""What the engines hold of weights, moments and gradients, in each phase of a step.

They follow `bc2.train.engines.local` and DeepSpeed's three optimizers (0.19:
`bf16_optimizer.py`, `zero/stage_1_and_2.py`, `stage3.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from bc2.train.engines.deepspeed_settings import BUCKET
from bc2.train.memory.share import Share

#: Elements (DeepSpeed's `zero/config.py`: stage3_max_reuse_distance,
#: stage3_prefetch_bucket_size).
REUSE, PREFETCH = 1_000_000_000, 50_000_000

#: Bytes by what they are for.
Parts = dict[str, int]


@dataclass(frozen=True)
class States:
    """What an engine holds of weights, moments and gradients."""

    lasting: Parts
    """At any time."""
    gradients: int
    """fp32, at an optimizer step."""
    earlier: int
    """Gradients of earlier micro-batches when the next one begins."""
    head: int
    """The head's gradient, while the layers' come."""
    arrived: Parts
    """When the last gradient comes, beside `lasting`."""
    reduced: Parts
    """While gradients pass between ranks after that."""
    normed: Parts
    """While their norm is taken."""
    updated: Parts
    """While the optimizer runs and its ranks share the new weights."""
    gathered: int = 0
    """Whole weights of other ranks, forward and backward."""
    passing: int = 0
    """Buffers that fill during the backward pass, where one bucket does not hold it all."""
    host: int = 0


def local_states(share: Share, accumulated: bool) -> States:
    """See `bc2.train.engines.local`."""
    params = share.params
    halved = params - 2 * share.matrix if share.size == 2 else 0
    grads = {"gradients": 4 * params}
    arrived = 4 * params + (2 * halved if accumulated else 0)
    return States(
        lasting={
            "weights": 4 * (params - halved) + 2 * halved,
            "master": 4 * halved,
            "moments": 8 * params,
        },
        gradients=4 * params,
        earlier=4 * params if accumulated else 0,
        head=0 if accumulated else 4 * share.matrix,
        arrived={"gradients": arrived},
        reduced=grads,
        normed=grads,
        updated=grads,
    )


def zero_states(share: Share, accumulated: bool) -> States:
    """See `bc2.train.engines.deepspeed`."""
    if share.layout.zero == 3:
        return _zero_3(share, accumulated)
    if share.layout.zero == 1 and share.size == 2 and not share.layout.offload_optimizer:
        return _zero_1_bf16(share, accumulated)
    return _zero_1_2(share, accumulated)


def _parted(share: Share) -> int:
    return -(-share.params // share.replicas)


def _in_buckets(share: Share, buckets: int) -> int:
    """Bytes of DeepSpeed's buckets: made whole on a GPU, resident as far as they fill on a CPU."""
    whole = buckets * BUCKET
    return share.size * (whole if share.device != "cpu" else min(share.params, whole))


def _place(share: Share, part: int, parts: Parts) -> tuple[Parts, int]:
    """Lasting parts on the device, and bytes on the host instead, with offloaded states."""
    if not share.layout.offload_optimizer:
        return parts, 0
    moved: Parts = {
        name: parts.pop(name) for name in ("master", "moments", "gradients") if name in parts
    }
    moved.setdefault("gradients", 4 * part)
    held = sum(moved.values()) + share.size * part
    buffers = parts.get("buffers", 0) + share.size * share.largest
    if share.device == "cpu":
        return {**parts, **moved, "buffers": buffers + share.size * part}, 0
    return {**parts, "buffers": buffers}, held


def _zero_1_bf16(share: Share, accumulated: bool) -> States:
    """`BF16_Optimizer`: fp32 gradients of all weights, and bf16 ones until the step's end."""
    params, part = share.params, _parted(share)
    half = 2 * params
    # Tensors are joined to be reduced, unless the first one fills a bucket.
    joined = 4 * params if params <= BUCKET else 0
    shared = half if share.device == "cpu" and share.replicas > 1 else 0
    return States(
        lasting={
            "weights": half, "master": 4 * part, "moments": 8 * part, "gradients": 4 * params,
        },
        gradients=4 * params,
        earlier=half if accumulated else 0,
        head=0 if accumulated else 2 * share.matrix,
        arrived={"gradients": half},
        reduced={"gradients": half, "buffers": joined + half},
        normed={"gradients": half},
        updated={"gradients": half, "buffers": shared},
    )  # fmt: skip


def _zero_1_2(share: Share, accumulated: bool) -> States:
    """`DeepSpeedZeroOptimizer`: gradients go through buckets, and leave this rank's part."""
    params, part, size = share.params, _parted(share), share.size
    bucket = _in_buckets(share, 2 if share.layout.overlap else 1)
    joined = size * min(params, BUCKET)
    mine = 4 * part if share.layout.zero == 2 else 0
    earlier = mine if share.layout.zero == 2 else size * params
    own = mine if accumulated or size == 2 else 0
    shared = size * params if share.device == "cpu" else 0
    kept: Parts = {"weights": size * params, "master": 4 * part, "moments": 8 * part}
    lasting, host = _place(share, part, kept)
    if share.layout.offload_optimizer:
        own = earlier = 0
    return States(
        lasting=lasting,
        gradients=4 * part,
        earlier=earlier if accumulated else 0,
        head=size * share.matrix,
        arrived={"gradients": own, "buffers": bucket},
        reduced={"gradients": own, "buffers": bucket + joined},
        normed={"gradients": 4 * part},
        updated={"gradients": 8 * part if not shared else 0, "buffers": shared},
        passing=bucket + joined if params > BUCKET else 0,
        host=host,
    )


def _zero_3(share: Share, accumulated: bool) -> States:
    """`DeepSpeedZeroOptimizer_Stage3`: whole weights come as they are needed."""
    params, part, size = share.params, _parted(share), share.size
    joined = size * min(params, BUCKET)
    # Weights that are needed again within REUSE elements stay: those before the turn.
    near = min(params, REUSE // 2 + PREFETCH + share.matrix)
    group = share.layout.zero_group
    again = size * -(-params // group) if group else 0
    kept: Parts = {
        "weights": size * part + again, "master": 4 * part, "moments": 8 * part,
        "gradients": 4 * part, "buffers": _in_buckets(share, 1),
    }  # fmt: skip
    lasting, host = _place(share, part, kept)
    # Gloo scatters a copy; NCCL's result becomes fp32.
    scattered = joined if share.device == "cpu" else 4 * min(params, BUCKET) // share.replicas
    return States(
        lasting=lasting,
        gradients=4 * part,
        earlier=0,
        head=0,
        arrived={},
        # And the embedding with its gradient, which come last and are still held.
        reduced={"buffers": joined + scattered + 2 * size * share.matrix},
        normed={},
        updated={"gradients": 0 if share.layout.offload_optimizer else 4 * part},
        gathered=size * near,
        passing=joined + scattered if params > BUCKET else 0,
        host=host,
    )
