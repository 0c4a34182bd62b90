"""Sizes of the chunks in which the head's loss is computed. Memory is planned with them too.

Imports no torch.
"""

from __future__ import annotations

import math

#: Logits in the [C, V] buffer, by type of device. A larger buffer means longer products, and fewer
#: passes over the weight's gradient.
CHUNK_LOGITS = {"cpu": 64 << 20, "cuda": 512 << 20}

#: Bytes of the [R, V] block of logits that softmax handles at a time, by type of device: on a CPU
#: what its cache holds. A GPU has no such cache, and each operation on a block is a launch.
BLOCK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}

#: Rows of the weight that are normalised, scaled or added to at a time, by type of device.
WEIGHT_ROWS = {"cpu": 4096, "cuda": 32768}


def chunk_size(tokens: int, vocab_size: int, device: str) -> int:
    """C, the tokens of a chunk: as few chunks as memory allows, all of about the same length.

    Args:
        device: type of the device, such as "cuda".

    Returns:
        A multiple of 64.
    """
    most = max(64, _of(CHUNK_LOGITS, device) // vocab_size // 64 * 64)
    chunks = max(1, math.ceil(tokens / most))
    return math.ceil(tokens / chunks / 64) * 64 or 64


def block_rows(columns: int, element_size: int, device: str) -> int:
    """R, the rows of logits in a block: see `BLOCK_BYTES`.

    Args:
        columns: V, or a rank's part of it.
        element_size: bytes of a number that softmax computes with.
        device: type of the device.
    """
    return max(1, _of(BLOCK_BYTES, device) // (columns * element_size))


def weight_rows(device: str) -> int:
    """Rows of the weight that are worked on at a time: see `WEIGHT_ROWS`."""
    return _of(WEIGHT_ROWS, device)


def _of(sizes: dict[str, int], device: str) -> int:
    return sizes.get(device, sizes["cpu"])
