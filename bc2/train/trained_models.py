"""All models that a run trains, as one: all are measured, then all updated or all discarded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bc2.data.loader import Batch
from bc2.parallel.mesh import Mesh
from bc2.train.engines.base import Agreed, Engine
from bc2.train.metric import Metrics
from bc2.train.objective import Objective
from bc2.train.snapshot import ModelSnapshot, Snapshot
from bc2.train.speed.clock import Clock

if TYPE_CHECKING:
    from bc2.train.models import Models
    from bc2.train.training_settings import TrainingSettings


@dataclass(frozen=True)
class TrainedModel:
    """A model with what it minimises and how fast it learns."""

    engine: Engine
    objective: Objective
    learning_rate: Callable[[int], float]
    """Of a step, from 0."""
    clip_norm: float
    """What its gradient's norm is clipped to."""
    alone: bool = False
    """Whether only what is trained is saved."""

    def snapshot(self) -> ModelSnapshot:
        """Copies of the state that is saved."""
        engine = self.engine
        shapes = None
        if self.alone or engine.adapters is not None:
            # Not those that its configuration tells.
            saved = engine.trained_names if self.alone else engine.parts
            shapes = {name: engine.parts[name].shape for name in sorted(saved)}
        return ModelSnapshot(engine.snapshot(frozen=not self.alone), shapes)


@dataclass(frozen=True)
class TrainedModels:
    """The trained models of a run by role. The first is its product.

    What is measured of the product has its plain name, of another role ``ROLE.NAME``.
    """

    models: Mapping[str, TrainedModel]
    metrics: Metrics
    divisor: str
    """The weight of a step that losses are divided by."""

    @classmethod
    def of(
        cls, settings: TrainingSettings, models: Models, learning_rate: Callable[..., float]
    ) -> TrainedModels:
        """What a run's settings say of its models.

        Args:
            learning_rate: of a step, from 0, with the highest as ``peak=``.
        """
        algorithm, config, trained = settings.algorithm, settings.training, {}
        for role in settings.models:
            if role.trained:
                optimizer = role.optimizer or config.optimizer
                trained[role.name] = TrainedModel(
                    models.trained[role.name],
                    algorithm.objective(role.name, config, models),
                    partial(learning_rate, peak=optimizer.learning_rate),
                    optimizer.clip_norm,
                    role.alone,
                )
        return cls(trained, algorithm.metrics, algorithm.divisor)

    @property
    def product(self) -> Engine:
        return next(iter(self.models.values())).engine

    @property
    def mesh(self) -> Mesh:
        return self.product.mesh

    @property
    def clock(self) -> Clock:
        """Of all of them."""
        return self.product.clock

    def agree(self, weights: Mapping[str, float], computed: int, stop: bool) -> Agreed:
        """See `Engine.agree`."""
        return self.product.agree(weights, computed, stop)

    def measure(
        self, batches: Callable[[], Iterable[Batch]], weights: Mapping[str, float], step: int
    ) -> dict[str, float]:
        """Forward and backward of one optimizer step of each model; no weight is changed.

        Args:
            batches: this rank's micro-batches, once through at each call.
            weights: of the step on all ranks; `divisor` is above 0.
            step: from 0.

        Returns:
            Of each model ``loss``, the objective's sums over what they are averaged over,
            ``grad_norm``, ``clipped`` and ``lr``.
        """
        measured: dict[str, float] = {}
        for role, model in self._named():
            sums = model.engine.accumulate(
                batches(), model.objective, divisor=weights[self.divisor]
            )
            norm = model.engine.gradient_norm()
            measured |= {
                **self._means(role, sums, weights),
                f"{role}grad_norm": norm,
                f"{role}clipped": norm > model.clip_norm,
                f"{role}lr": model.learning_rate(step),
            }
        for metric in self.metrics.of_steps:
            if metric.name not in measured:
                raise ValueError(f"no objective sums the declared metric {metric.name}")
        return measured

    def _named(self) -> Iterable[tuple[str, TrainedModel]]:
        """Each model, with what the names of its measurements begin with."""
        for number, (role, model) in enumerate(self.models.items()):
            yield f"{role}." if number else "", model

    def _means(
        self, role: str, sums: Mapping[str, float], weights: Mapping[str, float]
    ) -> dict[str, float]:
        if taken := weights.keys() & sums.keys():
            raise ValueError(f"an objective sums {min(taken)}, which is a weight of the batches")
        over = {metric.name: metric.over for metric in self.metrics.of_steps}
        known = {**weights, **sums}
        means = {}
        for name, value in sums.items():
            if name in over.values() and f"{role}{name}" not in over:
                continue  # it is only divided by
            if name != "loss" and f"{role}{name}" not in over:
                raise ValueError(f"{role}{name} is summed by an objective and no declared metric")
            over_what = self.divisor if name == "loss" else over[f"{role}{name}"]
            if over_what not in known:
                raise ValueError(
                    f"{role}{name} is averaged over {over_what}, which is no weight of the step "
                    "and no sum of the objective"
                )
            by = known[over_what]
            means[f"{role}{name}"] = value / by if by else float("nan")
        return means

    def update(self, measured: Mapping[str, float]) -> None:
        """Clip and make the step that `measure` measured, of every model."""
        for role, model in self._named():
            model.engine.update(
                measured[f"{role}lr"], norm=measured[f"{role}grad_norm"], clip_norm=model.clip_norm
            )

    def discard(self) -> None:
        """Drop all gradients."""
        for model in self.models.values():
            model.engine.discard()

    def snapshot(self) -> dict[str, ModelSnapshot]:
        """Of each model; by role, as `Snapshot.models` names them."""
        return {
            role if number else "": model.snapshot()
            for number, (role, model) in enumerate(self.models.items())
        }

    def restore(self, snapshot: Snapshot) -> None:
        """Load the state of every model, whatever the layout that saved it."""
        for number, (role, model) in enumerate(self.models.items()):
            found = snapshot.models[role if number else ""]
            model.engine.restore(found.weights, found.optimizer)
