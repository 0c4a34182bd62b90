"""What training a reward model measures. Imports no torch."""

from __future__ import annotations

from bc2.align.pairs.preference_config import PAIRS
from bc2.train.metric import Metric, Metrics

REWARD_METRICS = Metrics(
    (
        Metric("loss", "objective", "nats per pair", over=PAIRS, better="lower", shown="log"),
        Metric(
            "ranking", "ranking loss", "nats per pair", over=PAIRS, better="lower", headline=True,
        ),
        Metric(
            "absolute", "absolute loss", "per pair", over=PAIRS, better="lower", shown="log",
        ),
        Metric("accuracy", "pairs in order", over=PAIRS, better="higher", short="in order"),
        Metric("score_margin", "score of chosen above rejected", over=PAIRS),
        Metric(
            "heldout_loss", "held-out ranking loss", "nats per pair", of="evaluation", over=PAIRS,
            better="lower", short="held-out",
        ),
        Metric(
            "heldout_accuracy", "held-out pairs in order", of="evaluation", over=PAIRS,
            better="higher", headline=True, short="held-out in order",
        ),
        Metric(
            "heldout_score_margin", "held-out score of chosen above rejected", of="evaluation",
            over=PAIRS,
        ),
    )
)  # fmt: skip
