"""What a run takes in memory: all of its models, while each of them has its turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from bc2.train.memory.estimate import MEMORY_PARTS, MemoryEstimate, estimate
from bc2.train.memory.shape import TrainingShape
from bc2.train.memory.states import BytesByPart

if TYPE_CHECKING:
    from bc2.train.algorithm import ModelRole
    from bc2.train.training_settings import TrainingSettings


def estimate_run(settings: TrainingSettings, world: int) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full sequences.

    Models compute one after another: the phase that holds most is one of a trained model, beside
    what the others hold between their turns: weights and states, and gradients until all of them
    are updated.

    Args:
        settings: device, micro-batch and activation checkpointing resolved.
        world: ranks.
    """
    trained = {r.name: estimate(_shape(settings, r, world)) for r in settings.models if r.trained}
    held = {name: _held(one) for name, one in trained.items()}
    frozen = Counter({"weights": sum(
        _frozen_bytes(settings, role, world) for role in settings.models if not role.trained
    )})  # fmt: skip
    if len(settings.models) == 1:
        return next(iter(trained.values()))
    phases: dict[str, BytesByPart] = {}
    for name, one in trained.items():
        others = sum((held[other] for other in held if other != name), frozen)
        for phase, parts in one.phases.items():
            together = Counter(parts) + others
            phases[f"{name} {phase}"] = {part: together[part] for part in MEMORY_PARTS}
    first = next(iter(trained.values()))
    lasting = sum(held.values(), frozen)
    return replace(
        first,
        weights=lasting["weights"],
        master=lasting["master"],
        moments=lasting["moments"],
        gradients=lasting["gradients"],
        phases=phases,
        host=sum(one.host for one in trained.values()),
    )


def _held(one: MemoryEstimate) -> Counter[str]:
    """Bytes of a trained model between its backward pass and its update."""
    return Counter(
        {
            "weights": one.weights, "master": one.master, "moments": one.moments,
            "gradients": one.gradients,
        }
    )  # fmt: skip


def _shape(settings: TrainingSettings, role: ModelRole, world: int) -> TrainingShape:
    own = {} if role.optimizer is None else {"optimizer": role.optimizer}
    training = settings.training.model_copy(update=own)
    return TrainingShape.of(role.model, training, settings.parallel, world, trained=_trained(role))


def _trained(role: ModelRole) -> frozenset[str] | None:
    if role.trainable is None:
        return None
    from bc2.model.store import expected_shapes

    return frozenset(filter(role.trainable, expected_shapes(role.model)))


def _frozen_bytes(settings: TrainingSettings, role: ModelRole, world: int) -> int:
    """Bytes of this rank's part of a model that is never trained."""
    shape = _shape(settings, role, world)
    share = shape.replicas if shape.layout.zero == 3 else 1
    return -(-shape.params // share) * shape.number_bytes
