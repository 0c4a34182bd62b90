"""Reward models: a scalar head learns which of two answers is the better one.

Baichuan 2 §3.2 (pairs); the Alignment report (absolute scores beside them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bc2.align.pairs.preference_config import PAIRS
from bc2.align.pairs.preference_models import trained_role, write_beside
from bc2.align.reward.reward_config import RewardConfig
from bc2.align.reward.reward_metrics import REWARD_METRICS
from bc2.model.model_config import ModelConfig
from bc2.pipeline.stage import Input
from bc2.registry import Role
from bc2.train.algorithm import Algorithm, ModelRole, Training
from bc2.train.run_config import RunConfig

if TYPE_CHECKING:
    import numpy as np

    from bc2.align.reward.heldout_scores import HeldoutScores
    from bc2.align.samples.row_stream import RowStream
    from bc2.data.loader import Batch
    from bc2.train.guard import Guard
    from bc2.train.models import Models
    from bc2.train.objective import Objective
    from bc2.train.run import Run
    from bc2.train.training_settings import TrainingSettings


class RewardModelling(Algorithm):
    """One model with a scalar head, pairs packed into rows, a loss in nats a pair."""

    section = RewardConfig
    version = 1
    role = "reward"
    metrics = REWARD_METRICS
    divisor = PAIRS
    inputs = (Input("pairs", lambda settings: settings.training.pairs),)  # type: ignore[attr-defined]

    def trained_shape(self, written: ModelConfig) -> ModelConfig:
        return written.model_copy(update={"head": "scalar", "num_classes": None})

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        return (trained_role(settings, lambda name: name == "score.weight"),)

    def checkpoint_role(self, config: RunConfig) -> Role:
        assert isinstance(config, RewardConfig)
        return "reward" if config.lora is None else "adapter"

    def write_beside(self, run: Run, folder: Path) -> None:
        write_beside(run, folder)

    def shortened(self, config: RunConfig, steps: int) -> dict[str, Any]:
        assert isinstance(config, RewardConfig)
        return {"eval_pairs": min(config.eval_pairs, 16)}

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        from bc2.align.reward.reward_objective import PairwiseScores

        return PairwiseScores()

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        from bc2.align.pairs.example_pairs import example_pairs
        from bc2.align.reward.reward_objective import ALPHA, TARGET

        assert isinstance(settings.training, RewardConfig)
        return example_pairs(
            settings.model.vocab_size, settings.training, sequences, rng, ends=True,
            fields={TARGET: float, ALPHA: float},
        )  # fmt: skip

    def open(self, run: Run) -> RewardRun:
        return RewardRun(run)


class RewardRun(Training):
    """The pairs of a run, and what is read of them."""

    def __init__(self, run: Run):
        from bc2.align.pairs.pair_inputs import open_pair_inputs
        from bc2.align.reward.targets import target_fields

        assert isinstance(run.config, RewardConfig)
        self.config = run.config
        self.data = open_pair_inputs(run, ends=True)
        self.fields = target_fields(self.data.rows.pairs.table, self.data.pairs, run.config)
        self.schedule, self.tokenizer = self.data.schedule, self.data.source.tokenizer

    def stream(self, config: RunConfig, models: Models, check: Callable[[], None]) -> RowStream:
        from dataclasses import replace

        from bc2.align.samples.row_stream import RowStream

        assert isinstance(config, RewardConfig)
        data, rows = self.data, replace(self.data.rows, fields=self.fields)
        return RowStream.of(rows, config, data.total_rows, data.sources, models.mesh, check)

    def guard(self) -> Guard[Any]:
        from bc2.train.loss_guard import LossGuard

        return LossGuard(self.config.guard, REWARD_METRICS.guarded)

    def evaluator(
        self, config: RunConfig, models: Models, check: Callable[[], None]
    ) -> HeldoutScores | None:
        from bc2.align.reward.heldout_scores import HeldoutScores

        assert isinstance(config, RewardConfig)
        if self.data.heldout is None:
            return None
        return HeldoutScores(
            models.product, self.data.heldout, self.data.sources, config.micro_sequences,
            timeout_s=config.data_timeout_s, check=check,
        )  # fmt: skip

    def alike(self) -> Mapping[str, Any]:
        return self.data.alike()

    def extent(self) -> str:
        return self.data.extent(self.config)

    def announcements(self) -> Sequence[str]:
        return self.data.lines


REWARD = RewardModelling()
