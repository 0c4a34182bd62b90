"""What supervised fine-tuning measures. Imports no torch."""

from __future__ import annotations

from bc2.train.metric import Metric, Metrics

SFT_METRICS = Metrics(
    (
        Metric(
            "loss", "objective", "nats per trained token", over="weight", better="lower",
            shown="log",
        ),
        Metric("ce", "loss", "nats per trained token", better="lower", headline=True),
        Metric(
            "heldout_loss", "held-out loss", "nats per trained token", of="evaluation",
            better="lower", headline=True, short="held-out",
        ),
        Metric(
            "heldout_samples_loss", "held-out loss, mean of conversations",
            "nats per trained token", of="evaluation", over="samples", better="lower",
            shown="figure",
        ),
        Metric(
            "heldout_accuracy", "held-out tokens that are the likeliest", of="evaluation",
            better="higher", short="likeliest", shown="figure",
        ),
    )
)  # fmt: skip
