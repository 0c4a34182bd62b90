"""What `bc2.train.micro_batch_trial` is told. Imports no torch."""

from __future__ import annotations

from bc2.train.training_spec import TrainingSpec


class TrialSpec(TrainingSpec):
    """What is tried."""

    margin: float
    """Share of a GPU's free memory that is left unused."""
