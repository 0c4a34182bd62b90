"""What a run takes in memory: all of its models, while each of them has its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from bc2.train.memory.activations import forward_bytes
from bc2.train.memory.estimate import MEMORY_PARTS, MemoryEstimate, estimate
from bc2.train.memory.shape import TrainingShape
from bc2.train.memory.states import BytesByPart, frozen_states
from bc2.train.optimizer_config import OptimizerConfig

if TYPE_CHECKING:
    from bc2.train.algorithm import ModelRole
    from bc2.train.training_settings import TrainingSettings


@dataclass(frozen=True)
class ModelShape:
    """A model of a run, as it is laid out."""

    name: str
    """Of its role."""
    shape: TrainingShape
    trained: bool
    in_steps: bool = True
    """See `ModelRole.in_steps`."""


def estimate_run(settings: TrainingSettings, world: int) -> MemoryEstimate:
    """What one device holds to train on micro-batches of full sequences.

    Args:
        settings: device, micro-batch and activation checkpointing resolved.
        world: ranks.
    """
    return estimate_models(
        [ModelShape(role.name, _shape(settings, role, world), role.trained, role.in_steps)
         for role in settings.models]
    )  # fmt: skip


def estimate_models(models: Sequence[ModelShape]) -> MemoryEstimate:
    """What one device holds of several models, in the order in which they have their turns.

    They compute one after another. While one has its turn, those before it hold their gradients
    too, until all are updated, and those after it their weights and states alone. A frozen one
    runs in the turn of a trained one, whose activations may be held by then, unless steps leave it
    out: what a stream or an evaluation holds is not counted.
    """
    trained = {each.name: estimate(each.shape) for each in models if each.trained}
    if len(models) == 1:
        return next(iter(trained.values()))
    frozen = {each.name: each.shape for each in models if not each.trained}
    held = _sum(frozen_states(shape).lasting for shape in frozen.values())
    phases: dict[str, BytesByPart] = {}
    names = list(trained)
    for number, name in enumerate(names):
        before = _sum(trained[other].phases["norm"] for other in names[:number])
        after = _sum(trained[other].lasting for other in names[number + 1 :])
        others = before + after + held
        measured = _sum(trained[other].phases["norm"] for other in names if other != name) + held
        for phase, parts in trained[name].phases.items():
            # Updates begin when every model was measured.
            beside = measured if phase == "update" else others
            phases[f"{name} {phase}"] = _parts(Counter(parts) + beside)
        for other in (each.name for each in models if each.in_steps and not each.trained):
            turn = _parts(_frozen_turn(trained[name], frozen[other]) + others)
            known = phases.get(f"{other} forward", {})
            phases[f"{other} forward"] = max(known, turn, key=lambda held: sum(held.values()))
    return _together(list(trained.values()), held, phases)


def _frozen_turn(one: MemoryEstimate, shape: TrainingShape) -> Counter[str]:
    """Bytes while a frozen model of this shape runs in the turn of a trained one."""
    kept = {**one.phases["head"], "head": 0, "buffers": one.lasting.get("buffers", 0)}
    layer, head = forward_bytes(shape)
    runs = {"activations": layer, "head": head, "buffers": frozen_states(shape).gathered}
    return _sum([kept, runs])


def _together(
    trained: list[MemoryEstimate], frozen: Counter[str], phases: dict[str, BytesByPart]
) -> MemoryEstimate:
    first = trained[0]
    return replace(
        first,
        weights=sum(one.weights for one in trained) + frozen["weights"],
        master=sum(one.master for one in trained),
        moments=sum(one.moments for one in trained),
        gradients=sum(one.gradients for one in trained),
        phases=phases,
        lasting=_parts(_sum(one.lasting for one in trained) + frozen),
        host=sum(one.host for one in trained),
    )


def _sum(held: Iterable[BytesByPart]) -> Counter[str]:
    total: Counter[str] = Counter()
    for parts in held:
        total.update(parts)
    return total


def _parts(held: Counter[str]) -> BytesByPart:
    return {part: held[part] for part in MEMORY_PARTS}


def _shape(settings: TrainingSettings, role: ModelRole, world: int) -> TrainingShape:
    own = {} if role.optimizer is None else {"optimizer": role.optimizer}
    training = settings.training.model_copy(update=own)
    return TrainingShape.of(
        role.model, training, settings.parallel, world, trained=trained_names(role),
        adapters=adapter_count(role), cut_adapters=adapter_count(role, cut=True),
    )  # fmt: skip


def trained_names(role: ModelRole) -> frozenset[str] | None:
    """The parameters of a trained model that are; None: all of them."""
    if role.trainable is None:
        return None
    from bc2.model.store import expected_shapes

    return frozenset(filter(role.trainable, expected_shapes(role.model)))


def adapter_count(role: ModelRole, *, cut: bool = False) -> int:
    """Parameters of a model's adapters.

    Args:
        cut: those alone that tensor-parallel ranks share.
    """
    if role.adapters is None:
        return 0
    from bc2.model.adapters import is_adapters
    from bc2.parallel.build import parts
    from bc2.parallel.mesh import Mesh
    from bc2.parallel.sharding import cut_dimension

    shards = parts(role.model, Mesh(), role.adapters)
    return sum(
        prod(part.shape)
        for name, part in shards.items()
        if is_adapters(name) and not (cut and cut_dimension(name) is None)
    )


def saved_bytes(role: ModelRole, optimizer: OptimizerConfig) -> int:
    """Of the tensors of a checkpoint that are a trained model's.

    Args:
        optimizer: of the section, for a role without one of its own.
    """
    chosen = role.optimizer or optimizer
    return round(4 * saved_count(role) + chosen.state_bytes(role.model) * all_trained(role))


def saved_count(role: ModelRole) -> int:
    """Parameters of a trained model that a checkpoint has."""
    return all_trained(role) if role.alone else role.model.num_params() + adapter_count(role)


def all_trained(role: ModelRole) -> int:
    """Parameters of a trained model that are trained, and its adapters'."""
    own = trained_count(role)
    return (role.model.num_params() if own is None else own) + adapter_count(role)


def part_trained(roles: Iterable[ModelRole]) -> int | None:
    """Parameters that a run trains, adapters included; None: all of the models that it trains."""
    trained = [role for role in roles if role.trained]
    count = sum(map(all_trained, trained))
    return None if count == sum(role.model.num_params() for role in trained) else count


def trained_count(role: ModelRole) -> int | None:
    """How many of a trained model's own parameters are; None: all of them."""
    names = trained_names(role)
    if names is None:
        return None
    from bc2.model.store import expected_shapes

    shapes = expected_shapes(role.model)
    return sum(prod(shapes[name]) for name in names)
