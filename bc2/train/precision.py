"""The types that models are trained in. Imports no torch."""

from __future__ import annotations

from typing import Literal

Precision = Literal["bf16", "fp32"]
