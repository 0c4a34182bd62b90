"""The guard of losses in nats a token: a step whose loss is far above the recent ones is bad."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from bc2.train.guard import Guard
from bc2.train.run_config import LossGuardConfig


class LossGuard(Guard[LossGuardConfig]):
    """Looks for spikes too: losses far above those of the recent accepted steps."""

    def judge(self, measured: Mapping[str, float]) -> str | None:
        reason = super().judge(measured)
        if reason is not None:
            return reason
        loss = measured["loss"]
        if len(self.recent) >= self.config.window:
            median = statistics.median(self.recent)
            if loss > median + self.config.max_rise:
                return f"loss {loss:.4f} is {loss - median:.2f} nats above the median {median:.4f}"
        return None

    def accept(self, measured: Mapping[str, float]) -> None:
        super().accept(measured)
        self.recent.append(measured["loss"])
        while len(self.recent) > self.config.window:
            self.recent.popleft()
