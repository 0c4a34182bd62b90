"""Steps of micro-batches that an algorithm makes up: full sequences, drawn by a seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bc2.parallel.mesh import Mesh
from bc2.train.speed.step_flops import flops_per_token
from bc2.train.stream import StepData
from bc2.train.training_settings import TrainingSettings


def made_steps(settings: TrainingSettings, mesh: Mesh) -> Iterator[StepData]:
    """Steps of this rank of `mesh`, without end; other data-parallel ranks have other samples."""
    training, data = settings.training, mesh.data
    micro = training.micro_sequences
    rng = np.random.default_rng((training.seed, data.rank))
    first = 0
    while True:
        batches = [
            settings.algorithm.example(settings, micro, rng)
            for _ in range(training.batch_sequences // (micro * data.size))
        ]
        yield StepData(first, training.batch_sequences, batches)
        first += training.batch_sequences


def work_of_step(settings: TrainingSettings) -> tuple[int, int]:
    """Tokens that go through the models in such a step, on all ranks, and the FLOPs of each."""
    step = next(made_steps(settings, Mesh()))
    matmul, attended = (flops_per_token(settings.models, row) for row in (0, 1))
    return step.computed, matmul + (attended - matmul) * step.pairs // step.computed
