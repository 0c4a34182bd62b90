"""What training takes in memory, worked out from the shape and the layout.

A step has phases that hold different things; the most that one of them holds is what counts.
`benchmarks/plan_memory.py` holds the whole against measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.memory.share import (
    Activations,
    Share,
    activations_of,
    head_bytes,
    hidden_gradient,
)
from bc2.train.memory.states import Parts, States, local_states, zero_states
from bc2.train.precision import Precision
from bc2.train.pretrain_config import PretrainConfig

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
    micro_batch: int,
    sequence_length: int,
    precision: Precision,
    checkpointing: int,
    *,
    device: str = "cpu",
    accumulated: bool = False,
    parallel: ParallelConfig | None = None,
    world: int = 1,
) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full sequences.

    Args:
        micro_batch: sequences of a micro-batch.
        sequence_length: tokens of each, one document.
        checkpointing: layers in a segment; 0: nothing is computed again.
        device: the head's buffers and DeepSpeed's are larger on a GPU.
        accumulated: a step has several micro-batches.
        parallel: how the ranks share the work; None: there is one.
        world: ranks.
    """
    layout = (parallel or ParallelConfig()).on(world)
    share = Share(model, layout, world, micro_batch, sequence_length, precision, device)
    activations = activations_of(share, checkpointing)
    states = zero_states(share, accumulated) if layout.zero else local_states(share, accumulated)
    return MemoryEstimate(
        weights=states.lasting["weights"],
        master=states.lasting.get("master", 0),
        moments=states.lasting.get("moments", 0),
        gradients=states.gradients,
        activations=activations.kept,
        recomputed=activations.segment if checkpointing else 0,
        head=head_bytes(share),
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
    code (`layer_bytes`): tensor parallelism leaves a rank a share of it beside whole norms
    and inputs, so k grows with those ranks; micro_batch and ranks that share tokens change both
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
        found = activations_of(share, segment)
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
    import torch

    from bc2.train.device import pick_precision

    device = torch.device(config.device)
    precision = pick_precision(config.precision, device)
    layers = least_segment(model, config.sequence_length, precision, device.type, tensor)
    return config.model_copy(update={"activation_checkpointing": layers})


def _phases(share: Share, states: States, act: Activations) -> dict[str, Parts]:
    """What is held at the head, where the backward pass turns and ends, and after it."""
    again = act.segment if act.again else 0
    inside = {"recomputed": again, "buffers": states.gathered}
    kept = {"gradients": states.earlier, "activations": act.kept}
    turn = {"gradients": states.head, "activations": act.work + hidden_gradient(share)}
    last = {"activations": act.work} if act.again else {"activations": act.work + act.segment}
    return {
        "head": _sum(states.lasting, kept, {"head": head_bytes(share), "buffers": states.gathered}),
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
