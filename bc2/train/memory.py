"""What training takes in memory, worked out from the shape and the layout; and what there is.

The sizes follow the code: the tensors that autograd keeps of `bc2.model.transformer`, the
buffers of `bc2.model.head_loss`, the copies of `bc2.train.engines.local`, and those of
DeepSpeed's three optimizers (0.19: `bf16_optimizer.py`, `zero/stage_1_and_2.py`, `stage3.py`).
A step has phases that hold different things; the most that one of them holds is what counts.
A test counts the kept tensors, so that a change there that is not followed here is seen, and
`benchmarks/plan_memory.py` holds the whole against measured peaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import psutil
import torch

from bc2.model.config import ModelConfig
from bc2.model.head_loss import BLOCK_BYTES, WEIGHT_ROWS, chunk_size
from bc2.parallel.config import ParallelConfig
from bc2.train.config import PretrainConfig
from bc2.train.device import Precision, pick_precision

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")

#: Elements of DeepSpeed's buckets (its `zero/config.py`: reduce_bucket_size,
#: stage3_max_reuse_distance, stage3_prefetch_bucket_size).
BUCKET, REUSE, PREFETCH = 500_000_000, 1_000_000_000, 50_000_000

#: Bytes by what they are for.
Parts = dict[str, int]

#: The parts, in the order in which they are shown.
PARTS = (
    "weights", "master", "moments", "gradients", "activations", "recomputed", "head", "buffers",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one device, by what they are for."""

    weights: int
    """Of the forward and backward pass; in the local engine embedding and head are fp32."""
    master: int
    """fp32 weights beside them, that the optimizer updates."""
    moments: int
    """AdamW's two, fp32."""
    gradients: int
    """fp32: what an optimizer step of this rank sees."""
    activations: int
    """Kept by the forward pass for the backward pass."""
    recomputed: int
    """Of one segment, computed again in the backward pass; 0 without checkpointing."""
    head: int
    """Buffers and gradients of the head's loss, which runs between the two."""
    phases: Mapping[str, Parts]
    """What is held in each phase of a step."""
    host: int = 0
    """Held in the host's memory instead, a rank: offloaded states."""

    @property
    def phase(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return sum(self.phases[self.phase].values())

    @property
    def parts(self) -> Parts:
        """What is held then."""
        return {name: self.phases[self.phase].get(name, 0) for name in PARTS}


def estimate(
    model: ModelConfig,
    rows: int,
    sequence_length: int,
    precision: Precision,
    checkpointing: int,
    *,
    device: str = "cpu",
    accumulated: bool = False,
    parallel: ParallelConfig | None = None,
    world: int = 1,
) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full rows.

    Args:
        rows: sequences of a micro-batch.
        sequence_length: tokens of each, one document.
        checkpointing: layers in a segment; 0: nothing is computed again.
        device: the head's buffers and DeepSpeed's are larger on a GPU.
        accumulated: a step has several micro-batches.
        parallel: how the ranks share the work; None: there is one.
        world: ranks.
    """
    layout = parallel or ParallelConfig()
    share = Share(model, layout, world, rows, sequence_length, precision, device)
    activations = _activations(share, checkpointing)
    states = _zero_states(share, accumulated) if layout.zero else _local_states(share, accumulated)
    return MemoryEstimate(
        weights=states.lasting["weights"],
        master=states.lasting.get("master", 0),
        moments=states.lasting.get("moments", 0),
        gradients=states.gradients,
        activations=activations.kept,
        recomputed=activations.segment if checkpointing else 0,
        head=_head_bytes(share),
        phases=_phases(share, states, activations),
        host=states.host,
    )


def least_segment(
    model: ModelConfig, sequence_length: int, precision: Precision, device: str, tensor: int = 1
) -> int:
    """Layers in a segment of activation checkpointing that hold the least together.

    The derivation of multi-layer activation checkpointing (Baichuan Alignment report, arXiv
    2410.14940). With L layers in segments of k, the forward pass keeps the input of each of
    the L/k segments, and the backward pass has all that autograd keeps of the k layers of one.
    Let a layer keep n times its input: in units of an input that is

        L/k + n k, least where its derivative n - L/k² is 0: at k = √(L/n).

    Every k above 0 computes each layer once more, so the time is the same. n is counted of the
    code (`_layer_bytes`): tensor parallelism leaves a rank a share of it beside whole norms
    and inputs, so k grows with those ranks; rows, and ranks that share tokens, change both
    alike. Segments are whole layers and the last may be shorter, as `Decoder.forward` cuts
    them: every whole k is tried, with ⌈L/k⌉ inputs, and of two alike the shorter is taken.
    Gradients of the weights are no part of it. With one micro-batch a step they come as
    inputs go, and if they are the larger, k = 1 holds less; with several they are there before.

    Args:
        tensor: ranks that share each layer.
    """
    layout = ParallelConfig(tensor=tensor)
    share = Share(model, layout, tensor, 1, sequence_length, precision, device)

    def held(segment: int) -> int:
        found = _activations(share, segment)
        return found.kept + found.segment

    return min(range(1, model.num_layers + 1), key=held)


def settle_checkpointing(
    model: ModelConfig, config: PretrainConfig, tensor: int = 1
) -> PretrainConfig:
    """The settings with ``activation_checkpointing = "auto"`` resolved.

    Args:
        config: device and precision resolved.
        tensor: ranks that share each layer.
    """
    if config.activation_checkpointing != "auto":
        return config
    device = torch.device(config.device)
    precision = pick_precision(config.precision, device)
    layers = least_segment(model, config.sequence_length, precision, device.type, tensor)
    return config.model_copy(update={"activation_checkpointing": layers})


@dataclass(frozen=True)
class Share:
    """What one rank has of a model and of a micro-batch."""

    model: ModelConfig
    layout: ParallelConfig
    world: int
    rows: int
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
        return self.rows * self.length

    @property
    def heads(self) -> int:
        """Heads that this rank attends with."""
        return max(1, self.model.num_heads // (self.layout.tensor * self.layout.sequence))


# -- activations ----------------------------------------------------------------------------


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


def _activations(share: Share, checkpointing: int) -> Activations:
    model = share.model
    layer = _layer_bytes(share)
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


def _layer_bytes(share: Share) -> int:
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


# -- the head -------------------------------------------------------------------------------


def _head_bytes(share: Share) -> int:
    """The logits' buffer, the unit rows, the gradients that wait for the backward pass."""
    return _head_buffers(share) + 4 * share.matrix + _hidden_gradient(share)


def _hidden_gradient(share: Share) -> int:
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


# -- states ---------------------------------------------------------------------------------


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


def _local_states(share: Share, accumulated: bool) -> States:
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


def _zero_states(share: Share, accumulated: bool) -> States:
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


def _phases(share: Share, states: States, act: Activations) -> dict[str, Parts]:
    """What is held at the head, where the backward pass turns and ends, and after it."""
    again = act.segment if act.again else 0
    inside = {"recomputed": again, "buffers": states.gathered}
    kept = {"gradients": states.earlier, "activations": act.kept}
    turn = {"gradients": states.head, "activations": act.work + _hidden_gradient(share)}
    last = {"activations": act.work} if act.again else {"activations": act.work + act.segment}
    return {
        "head": _sum(
            states.lasting, kept, {"head": _head_bytes(share), "buffers": states.gathered}
        ),
        "turn": _sum(states.lasting, kept, turn, inside, {"buffers": states.passing}),
        "end": _sum(states.lasting, _but_the_last(share, states, act), last, {"recomputed": again}),
        "reduction": _sum(states.lasting, states.reduced),
        "norm": _sum(states.lasting, states.normed),
        "update": _sum(states.lasting, states.updated),
    }


def _but_the_last(share: Share, states: States, act: Activations) -> Parts:
    """Gradients while those of the first segment and of the embedding are still to come."""
    inner = share.params - 2 * share.matrix
    coming = inner * act.layers // share.model.num_layers + share.matrix
    arrived = sum(states.arrived.values())
    missing = max(0, arrived - states.earlier) * coming // share.params
    name = "buffers" if "buffers" in states.arrived else "gradients"
    return {**states.arrived, name: states.arrived.get(name, 0) - missing}


def _sum(*held: Parts) -> Parts:
    return {name: sum(parts.get(name, 0) for parts in held) for name in PARTS}


# -- what there is --------------------------------------------------------------------------


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
