"""A toy algorithm of another package: a scalar head learns which of two texts a judge prefers.

A frozen language model, the judge, finds one of two random texts likelier, and the trained model
is to value it more. The toy has what pretraining lacks: a frozen model, a head of values, fields
of tokens and samples, a divisor in pairs, a metric that is no loss, and a stream that has a state
and draws from both models. Here is what it declares, without torch; `toy_training` computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bc2.pipeline.stage import Input
from bc2.recipe import UNKEYED
from bc2.train.algorithm import Algorithm, ModelRole, Training
from bc2.train.metric import Metric, Metrics
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from bc2.data.loader import Batch
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run import Run
    from bc2.train.training_settings import TrainingSettings


class ToyConfig(RunConfig):
    """Settings of `bc2 toy`. A sequence is a pair of texts."""

    section: ClassVar[str] = "toy"
    batch_key: ClassVar[str] = "batch_pairs"

    tokenizer: str | None = Field(None, json_schema_extra=UNKEYED)
    """Goes into the checkpoints. None: this recipe's own, or the newest."""
    batch_pairs: int = Field(gt=0)
    """Pairs of one optimizer step, over all ranks."""

    @property
    def batch_sequences(self) -> int:
        return self.batch_pairs


class Toy(Algorithm):
    """Learn which of two texts a frozen language model finds likelier."""

    section = ToyConfig
    version = 1
    role = "reward"
    divisor = "pairs"
    metrics = Metrics(
        (
            Metric("loss", "loss", "nats per pair", over="pairs", better="lower"),
            Metric("right", "ordered right", over="pairs", better="higher", headline=True),
            Metric(
                "heldout_right", "held-out pairs ordered right", of="evaluation", over="pairs",
                better="higher", headline=True, short="held-out",
            ),
        )
    )  # fmt: skip
    inputs = (Input("tokenizer", lambda settings: settings.training.tokenizer),)

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        judge = settings.model.model_copy(update={"head": "language"})
        return (
            ModelRole("values", settings.model),
            ModelRole("judge", judge, trained=False, in_steps=False),
        )

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from toy_training import Preference

        return Preference()

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        from toy_training import Texts

        return Texts.draw(rng, sequences, settings.training.sequence_length).batch(slice(None))

    def open(self, run: Run) -> Training:
        from toy_training import ToyRun

        return ToyRun(run)


TOY = Toy()
