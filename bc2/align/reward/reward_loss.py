"""The losses of a reward model: pure functions of scores.

Shapes: P pairs. The Alignment report trains on -log σ(r_w - r_l) + α ((r_w - r̂_w)² + (r_l - r̂_l)²),
where w is the better answer, l the other one, and r̂ are scores that the data has.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log σ(r_w - r_l), in nats: [P], [P] -> [P] (Baichuan 2 §3.2, after InstructGPT)."""
    return -F.logsigmoid(chosen - rejected)


def absolute_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Σ (r - r̂)² of both answers of a pair: [P, 2], [P, 2] -> [P]."""
    return (scores - targets).square().sum(dim=1)
