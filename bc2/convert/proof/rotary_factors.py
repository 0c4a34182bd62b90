"""GGUF's table of how much more slowly each pair of channels turns, in float64.

Shapes: K channels of a head.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from bc2.model.model_config import ModelConfig

#: Its name in the file.
FACTORS = "rope_freqs.weight"

_TURN = 2 * math.pi


def rotary_factors(config: ModelConfig) -> npt.NDArray[np.float64] | None:
    """By each pair of channels [K / 2]; None if the model's positions have no such scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling.original_context is None:
        return None
    size, length = config.head_size, scaling.original_context
    waves = _TURN * config.rope_base ** (np.arange(0, size, 2) / size)
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((length / waves - low) / (high - low), 0, 1)
    else:
        # Pairs that turn beta_fast times in the original context are kept, from the pair on that
        # turns beta_slow times all are slowed.
        fast, slow = (
            size * math.log(length / (turns * _TURN)) / (2 * math.log(config.rope_base))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), size - 1)
        kept = 1 - np.clip((np.arange(size // 2) - first) / ((last - first) or 0.001), 0, 1)
    factors: npt.NDArray[np.float64] = 1 / (kept + (1 - kept) / scaling.factor)
    return factors
