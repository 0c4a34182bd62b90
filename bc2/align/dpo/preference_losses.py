"""Losses of preferences: pure functions of the log-ratios of two answers.

Shapes: P pairs. A log-ratio is log π(y | x) - log π_ref(y | x) of an answer y, in nats. h is the
log-ratio of the chosen answer above that of the rejected one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(h: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - ε) log σ(β h) - ε log σ(-β h): [P] -> [P] (arXiv 2305.18290, equation 7).

    With ε the share of pairs whose order is wrong it is the conservative form of its authors.
    """
    right, wrong = F.logsigmoid(beta * h), F.logsigmoid(-beta * h)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def ipo_loss(h: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 β))²: [P] -> [P] (arXiv 2310.12036, equation 17, with τ = β)."""
    return (h - 1 / (2 * beta)).square()


def length_normalised(log_ratios: Tensor, lengths: Tensor) -> Tensor:
    """The mean log-ratio a token: [P, 2], [P, 2] tokens -> [P, 2] (arXiv 2411.15124)."""
    return log_ratios / lengths


def sft_loss(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """-log π(y | x) / |y|, of the chosen answers: [P], [P] -> [P]."""
    return -log_probs / lengths
