"""How the head's loss is cut into pieces, for what computes it and what plans its memory.

Imports no torch.
"""

from __future__ import annotations

import math

#: Bytes of the [C, V] buffer: larger makes fewer passes over the weight's gradient.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}

#: Bytes of the [R, V] block in which softmax runs.
BLOCK_BYTES = 1 << 23

#: Rows of the weight that are normalised, scaled or added to at a time.
WEIGHT_ROWS = 4096


def chunk_size(tokens: int, vocab_size: int, element_size: int, device: str) -> int:
    """C: as few chunks as memory allows, all about as long, in multiples of 64 tokens."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    most = max(64, budget // (vocab_size * element_size) // 64 * 64)
    chunks = max(1, math.ceil(tokens / most))
    return math.ceil(tokens / chunks / 64) * 64 or 64
