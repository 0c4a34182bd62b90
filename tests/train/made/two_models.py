"""An algorithm for tests of what works for all: two trained models and a frozen one, made data.

A policy with a language head, a critic that is half as wide with a scalar one, which has an
optimizer of its own, and a frozen reference as large as the policy. It declares, makes batches
and has objectives; it opens no run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from bc2.data.loader import Batch, pack
from bc2.model.transformer import Transformer
from bc2.train.algorithm import Algorithm, ModelRole, Training
from bc2.train.metric import Metric, Metrics
from bc2.train.models import Models
from bc2.train.objective import Loss, Objective
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.run import Run
from bc2.train.run_config import RunConfig
from bc2.train.speed.clock import Clock
from bc2.train.training_settings import TrainingSettings


class TwoModelsConfig(RunConfig):
    """Settings of [two_models]."""

    section: ClassVar[str] = "two_models"
    batch_key: ClassVar[str] = "batch_texts"

    batch_texts: int = Field(gt=0)
    """Texts of one optimizer step, over all ranks."""

    @property
    def batch_sequences(self) -> int:
        return self.batch_texts


class TwoModels(Algorithm):
    """Train a policy and a critic."""

    section = TwoModelsConfig
    version = 1
    role = "chat"
    divisor = "samples"
    metrics = Metrics(
        (
            Metric("loss", "loss", over="samples", better="lower"),
            Metric("reward", "mean reward", over="samples", better="higher", headline=True),
        )
    )

    def models(self, settings: TrainingSettings) -> tuple[ModelRole, ...]:
        policy = settings.model
        half = {"hidden_size": policy.hidden_size // 2, "num_heads": policy.num_heads // 2}
        critic = policy.model_copy(update={**half, "head": "scalar"})
        return (
            ModelRole("policy", policy),
            ModelRole("critic", critic, optimizer=AdamWConfig(learning_rate=1e-5)),
            ModelRole("reference", policy, trained=False),
        )

    def objective(self, role: str, config: RunConfig, models: Models) -> Objective:
        return {"policy": _policy, "critic": _critic}[role]

    def example(
        self, settings: TrainingSettings, sequences: int, rng: np.random.Generator
    ) -> Batch:
        ids = rng.integers(1, settings.model.vocab_size, self._shape(settings, sequences))
        batch = pack(ids, np.zeros(sequences, np.int64), eos_id=0)
        return replace(batch, sample_fields={"reward": rng.random(sequences)})

    def _shape(self, settings: TrainingSettings, sequences: int) -> tuple[int, int]:
        return sequences, settings.training.sequence_length + 1

    def open(self, run: Run) -> Training:
        raise NotImplementedError


def _hidden(model: Transformer, batch: Batch) -> torch.Tensor:
    tokens, bounds = torch.from_numpy(batch.tokens), torch.from_numpy(batch.cu_seqlens)
    found: torch.Tensor = model(tokens.flatten(), bounds, batch.max_seqlen)
    return found


def _policy(model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
    labels = torch.from_numpy(batch.labels).flatten()
    parts = model.language_head.loss(_hidden(model, batch), labels, z_weight=0.0)
    return Loss(
        parts.loss_sum, {"reward": torch.tensor(float(batch.sample_fields["reward"].sum()))}
    )


def _critic(model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
    return Loss(model.values(_hidden(model, batch)).square().sum(), {})


TWO_MODELS = TwoModels()
