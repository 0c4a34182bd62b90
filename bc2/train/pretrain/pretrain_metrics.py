"""What pretraining measures. Imports no torch."""

from __future__ import annotations

from bc2.train.metric import Metric, Metrics

PRETRAIN_METRICS = Metrics(
    (
        Metric("loss", "objective", "nats per token", better="lower"),
        Metric("ce", "loss", "nats per token", better="lower", headline=True),
        Metric("z", "mean squared largest logit", better="lower"),
        Metric(
            "heldout_loss", "held-out loss", "nats per token", of="evaluation", better="lower",
            headline=True, short="held-out",
        ),
        Metric(
            "bits_per_byte", "bits per byte", "bits", of="evaluation", over="bytes", better="lower"
        ),
    )
)  # fmt: skip
