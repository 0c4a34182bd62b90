"""What direct preference optimisation measures. Imports no torch."""

from __future__ import annotations

from bc2.align.pairs.preference_config import PAIRS
from bc2.train.metric import Metric, Metrics

DPO_METRICS = Metrics(
    (
        Metric("loss", "objective", "per pair", over=PAIRS, better="lower", shown="log"),
        Metric(
            "preference", "preference loss", "per pair", over=PAIRS, better="lower", headline=True
        ),
        Metric("accuracy", "pairs in order", over=PAIRS, better="higher", short="in order"),
        Metric("reward_margin", "reward of chosen above rejected", over=PAIRS, better="higher"),
        Metric("chosen_reward", "reward of chosen", over=PAIRS, shown="log"),
        Metric("rejected_reward", "reward of rejected", over=PAIRS, shown="log"),
        Metric("chosen_log_prob", "log-probability of chosen", "nats per token", over=PAIRS),
        Metric("rejected_log_prob", "log-probability of rejected", "nats per token", over=PAIRS),
        Metric(
            "heldout_loss", "held-out preference loss", "per pair", of="evaluation", over=PAIRS,
            better="lower", short="held-out",
        ),
        Metric(
            "heldout_accuracy", "held-out pairs in order", of="evaluation", over=PAIRS,
            better="higher", headline=True, short="held-out in order",
        ),
        Metric(
            "heldout_reward_margin", "held-out reward of chosen above rejected", of="evaluation",
            over=PAIRS, better="higher",
        ),
        Metric(
            "heldout_chosen_log_prob", "held-out log-probability of chosen", "nats per token",
            of="evaluation", over=PAIRS,
        ),
        Metric(
            "heldout_rejected_log_prob", "held-out log-probability of rejected", "nats per token",
            of="evaluation", over=PAIRS,
        ),
        Metric(
            "answer_tokens", "tokens of the model's own answers", "tokens", of="evaluation",
            over="answers", shown="figure",
        ),
    )
)  # fmt: skip
