"""Which steps are bad: not finite, or what an algorithm's own guard says."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from bc2.train.run_config import GuardConfig

C = TypeVar("C", bound="GuardConfig")


@dataclass
class Guard(Generic[C]):
    """Judges a step before its update: losses and gradient norms must be finite.

    A subclass may look for more, and remember numbers of the steps it accepted, which are saved
    with a checkpoint.
    """

    config: C
    guarded: tuple[str, ...] = ()
    """Metrics that must be finite too."""
    recent: deque[float] = field(default_factory=deque)
    """What it remembers of accepted steps, the newest last."""
    bad: int = 0
    """Bad steps since the last accepted one."""

    def judge(self, measured: Mapping[str, float]) -> str | None:
        """Why this step must not be made, or None.

        Args:
            measured: as `TrainedModels.measure` returns it.
        """
        for name, value in measured.items():
            role, _, plain = name.rpartition(".")
            if not (plain in ("loss", "grad_norm") or name in self.guarded):
                continue
            if not math.isfinite(value):
                called = {"grad_norm": "gradient norm"}.get(plain, plain)
                return f"{f'{role} ' if role else ''}{called} is {value}"
        return None

    def accept(self, measured: Mapping[str, float]) -> None:
        """A good step was made."""
        self.bad = 0

    def restore(self, recent: list[float], bad: int) -> None:
        self.recent = deque(recent)
        self.bad = bad
