"""What training takes in memory, worked out from the shape and the layout.

The phases of a step hold different things; the phase that holds most counts.
`benchmarks/plan_memory.py` holds the whole against measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from bc2.train.memory.activations import (
    Activations,
    activations_of,
    head_bytes,
    hidden_gradient,
)
from bc2.train.memory.shape import TrainingShape
from bc2.train.memory.states import BytesByPart, States, local_states, zero_states

if TYPE_CHECKING:
    from bc2.model.model_config import ModelConfig
    from bc2.train.run_config import RunConfig

C = TypeVar("C", bound="RunConfig")

#: The parts, in the order in which they are shown.
MEMORY_PARTS = (
    "weights", "master", "moments", "gradients", "activations", "recomputed", "head", "buffers",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one device, by what they are for."""

    weights: int
    """Weights of the forward and backward pass; in the local engine embedding and head are fp32."""
    master: int
    """fp32 weights beside them, which the optimizer updates."""
    moments: int
    """The optimizer's state, fp32."""
    gradients: int
    """fp32 gradients that this rank's optimizer step reads."""
    activations: int
    """Kept by the forward pass for the backward pass."""
    recomputed: int
    """Activations of one segment, recomputed in the backward pass; 0 without checkpointing."""
    head: int
    """Buffers and gradients of the head, between forward and backward pass."""
    phases: Mapping[str, BytesByPart]
    """Bytes held in each phase of a step, by part."""
    lasting: BytesByPart
    """Bytes held at any time, by part."""
    host: int = 0
    """Bytes of each rank in the host's memory instead: offloaded states."""

    @property
    def phase(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return sum(self.phases[self.phase].values())

    @property
    def parts(self) -> BytesByPart:
        """The bytes held then, by part."""
        return {name: self.phases[self.phase].get(name, 0) for name in MEMORY_PARTS}


def estimate(shape: TrainingShape) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full sequences."""
    activations = activations_of(shape)
    states = zero_states(shape) if shape.layout.zero else local_states(shape)
    return MemoryEstimate(
        weights=states.lasting["weights"],
        master=states.lasting.get("master", 0),
        moments=states.lasting.get("moments", 0),
        gradients=states.gradients,
        activations=activations.kept,
        recomputed=activations.segment if activations.again else 0,
        head=head_bytes(shape),
        phases=_phases(shape, states, activations),
        lasting=states.lasting,
        host=states.host,
    )


def least_segment(shape: TrainingShape) -> int:
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
        shape: its model, sequence length, precision, device and tensor parallelism count.
    """
    from bc2.parallel.parallel_config import ParallelConfig

    tensor = shape.parallel.tensor
    one = replace(shape, micro_batch=1, parallel=ParallelConfig(tensor=tensor), world=tensor)

    def held(segment: int) -> int:
        activations = activations_of(replace(one, checkpointing=segment))
        return activations.kept + activations.segment

    return min(range(1, shape.model.num_layers + 1), key=held)


def settle_checkpointing(model: ModelConfig, config: C, tensor: int = 1) -> C:
    """The settings with ``activation_checkpointing = "auto"`` resolved.

    Args:
        config: device and precision resolved.
        tensor: ranks that share each layer.
    """
    if config.activation_checkpointing != "auto":
        return config
    import torch

    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.device import pick_precision

    device = torch.device(config.device)
    layers = least_segment(
        TrainingShape(
            model,
            micro_batch=1,
            sequence_length=config.sequence_length,
            precision=pick_precision(config.precision, device),
            checkpointing=0,
            device=device.type,
            parallel=ParallelConfig(tensor=tensor),
            world=tensor,
        )
    )
    return config.model_copy(update={"activation_checkpointing": layers})


def _phases(shape: TrainingShape, states: States, act: Activations) -> dict[str, BytesByPart]:
    """Bytes held at the head, as the backward pass begins and ends, and after it."""
    again = act.segment if act.again else 0
    inside = {"recomputed": again, "buffers": states.gathered}
    kept = {"gradients": states.earlier, "activations": act.kept}
    turn = {"gradients": states.head, "activations": act.work + hidden_gradient(shape)}
    last = {"activations": act.work} if act.again else {"activations": act.work + act.segment}
    tied = shape.model.tied_head
    # A tied head's gradient waits for the embedding's. With one micro-batch it is of what arrives.
    beside = tied and (shape.accumulated or shape.layout.zero > 0)
    waiting = {"gradients": states.head if beside else 0}
    phases = {
        "head": _sum(states.lasting, kept, {"head": head_bytes(shape), "buffers": states.gathered}),
        "turn": _sum(states.lasting, kept, turn, inside, states.passing),
        "end": _sum(
            states.lasting, _without_last_gradients(shape, states, act), waiting, last,
            {"recomputed": again},
        ),
        "reduction": _sum(states.lasting, states.reduced),
        "norm": _sum(states.lasting, states.normed),
        "update": _sum(states.lasting, states.updated),
    }  # fmt: skip
    if tied:
        phases["embedding"] = _sum(
            states.lasting, states.arrived, waiting, {"activations": states.head}
        )
    return phases


def _without_last_gradients(shape: TrainingShape, states: States, act: Activations) -> BytesByPart:
    """Gradients held while those of the first segment and the embedding are still missing."""
    inner = shape.trained_params - shape.trained_matrix - shape.trained_head
    coming = inner * act.layers // shape.model.num_layers
    if not shape.model.tied_head:  # else the head's gradient is there, in the embedding's place
        coming += shape.trained_matrix
    arrived = sum(states.arrived.values())
    missing = max(0, arrived - states.earlier) * coming // shape.trained_params
    name = "buffers" if "buffers" in states.arrived else "gradients"
    return {**states.arrived, name: states.arrived.get(name, 0) - missing}


def _sum(*held: BytesByPart) -> BytesByPart:
    return {name: sum(parts.get(name, 0) for parts in held) for name in MEMORY_PARTS}
