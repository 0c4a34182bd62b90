"""Typed lengths of training: "350 steps", "2.6T tokens", "2 epochs"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, cast

LengthUnit = Literal["steps", "tokens", "epochs"]

#: The most steps or tokens: what a number of 64 bits with a sign holds.
MOST = 2**63 - 1

#: The most epochs: tokens are counted in 64 bits, and data has some.
MOST_EPOCHS = 10**9

_SCALE = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_FORM = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*([KMBT]?)\s+(step|token|epoch)s?")


@dataclass(frozen=True)
class Duration:
    """An amount of training in one of three units; exact, never a binary float."""

    amount: Decimal
    unit: LengthUnit

    @classmethod
    def parse(cls, text: str, *, may_be_zero: bool = False) -> Duration:
        """Read "N[K|M|B|T] steps|tokens|epochs".

        Args:
            may_be_zero: whether none at all is a length too, as it is of a warm-up.

        Raises:
            ValueError: any other form, zero if it may not be, a fraction of a step or token, or
                more than can be counted.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError('write a length as "350 steps", "2.6T tokens" or "2 epochs"')
        amount = Decimal(match[1].replace("_", "")) * _SCALE[match[2]]
        unit = cast(LengthUnit, match[3] + "s")
        if amount == 0 and not may_be_zero:
            raise ValueError("a length must be more than zero")
        if amount > (MOST_EPOCHS if unit == "epochs" else MOST):
            raise ValueError("a length of more than can be counted with 64 bits")
        if unit != "epochs" and amount != amount.to_integral_value():
            raise ValueError(f"there is no fraction of a {match[3]}")
        return cls(amount, unit)

    def steps(self, *, batch_tokens: int, epoch_tokens: int) -> int:
        """Whole optimizer steps that cover this length: at least one, unless it is zero.

        Args:
            batch_tokens: tokens an optimizer step sees.
            epoch_tokens: tokens of one pass over the training data.
        """
        if self.unit == "steps":
            return int(self.amount)
        tokens = self.amount * (epoch_tokens if self.unit == "epochs" else 1)
        return max(1, math.ceil(tokens / batch_tokens)) if self.amount else 0
