"""Sizes of the chunks in which the head's loss is computed. Memory is planned with them too.

Imports no torch.
"""

from __future__ import annotations

import math

#: Bytes of the [C, V] buffer of logits, by type of device. A larger buffer means fewer passes over
#: the weight's gradient.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}

#: Bytes of the [R, V] block of logits that softmax handles at a time.
BLOCK_BYTES = 1 << 23

#: Rows of the weight that are normalised, scaled or added to at a time.
WEIGHT_ROWS = 4096


def chunk_size(tokens: int, vocab_size: int, element_size: int, device: str) -> int:
    """C, the tokens of a chunk: as few chunks as memory allows, all of about the same length.

    Args:
        element_size: bytes of one logit.
        device: type of the device, such as "cuda".

    Returns:
        A multiple of 64.
    """
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    most = max(64, budget // (vocab_size * element_size) // 64 * 64)
    chunks = max(1, math.ceil(tokens / most))
    return math.ceil(tokens / chunks / 64) * 64 or 64
