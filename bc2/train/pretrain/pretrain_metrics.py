"""What pretraining measures. Imports no torch."""

from __future__ import annotations

from bc2.train.metric import Metric, Metrics

PRETRAIN_METRICS = Metrics(
    (
        Metric("loss", "objective", "nats per token", better="lower", shown="log"),
        Metric("ce", "loss", "nats per token", better="lower", headline=True),
        Metric("z", "mean largest logit", shown="log"),
        Metric(
            "heldout_loss", "held-out loss", "nats per token", of="evaluation", better="lower",
            headline=True, short="held-out",
        ),
        Metric(
            "bits_per_byte", "bits per byte", "bits", of="evaluation", over="bytes", better="lower",
            short="bits/byte", shown="figure",
        ),
    )
)  # fmt: skip

#: Keys of `bc2 watch --json` from when there was only pretraining: a metric, and what of it.
#: None for a run that does not measure it.
WATCH_KEYS = {
    "loss": ("ce", "value"),
    "heldout_loss": ("heldout_loss", "value"),
    "best_heldout_loss": ("heldout_loss", "best"),
    "bits_per_byte": ("bits_per_byte", "value"),
}
