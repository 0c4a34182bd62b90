"""Which steps are bad: not finite, or a spike above the recent losses."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field

from bc2.train.pretrain.pretrain_config import LossGuardConfig


@dataclass
class Guard:
    """Judges a step before its update. Its state is the recent accepted losses."""

    config: LossGuardConfig
    recent: deque[float] = field(default_factory=deque)
    bad: int = 0
    """Bad steps since the last accepted one."""

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """Why this step must not be made, or None. Losses in nats a token."""
        if not math.isfinite(loss):
            return f"loss is {loss}"
        if not math.isfinite(gradient_norm):
            return f"gradient norm is {gradient_norm}"
        if len(self.recent) >= self.config.window:
            median = statistics.median(self.recent)
            if loss > median + self.config.max_rise:
                return f"loss {loss:.4f} is {loss - median:.2f} nats above the median {median:.4f}"
        return None

    def accept(self, loss: float) -> None:
        """Remember a good step's loss."""
        self.bad = 0
        self.recent.append(loss)
        while len(self.recent) > self.config.window:
            self.recent.popleft()

    def restore(self, recent: list[float], bad: int) -> None:
        self.recent = deque(recent)
        self.bad = bad
