"""The toy with a second trained model beside its product: a critic that learns what is scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from toy_algorithm import Toy, ToyConfig

from bc2.train.algorithm import ModelRole
from bc2.train.metric import Metric, Metrics
from bc2.train.optimizer_config import AdamWConfig, OptimizerConfig

if TYPE_CHECKING:
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run_config import RunConfig
    from bc2.train.training_settings import TrainingSettings


class ToyCriticConfig(ToyConfig):
    """Settings of `bc2 toy_critic`."""

    section: ClassVar[str] = "toy_critic"

    critic_optimizer: OptimizerConfig = Field(default_factory=lambda: AdamWConfig(clip_norm=1.0))
    """The critic's update rule."""


class ToyCritic(Toy):
    """Learn which of two texts a language model finds likelier, and how likely each is."""

    section = ToyCriticConfig
    metrics = Metrics(
        (
            *Toy.metrics.all,
            Metric("critic.loss", "critic loss", over="pairs", better="lower"),
            Metric("critic.error", "critic error", over="samples", better="lower"),
        )
    )

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        assert isinstance(settings.training, ToyCriticConfig)
        rule = settings.training.critic_optimizer
        critic = ModelRole("critic", settings.model, optimizer=rule)
        return (*super().models(settings), critic)

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from toy_training import SquaredError

        return SquaredError() if role == "critic" else super().objective(role, config, models)


TOY_CRITIC = ToyCritic()
