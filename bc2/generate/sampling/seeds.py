"""The keys of random numbers. Imports no torch."""

from __future__ import annotations

import hashlib


def sequence_key(seed: int, number: int) -> int:
    """The key of one continuation of a prompt, in [0, 2⁶³).

    It is a hash, because neighbouring seeds need not give independent numbers.

    Args:
        seed: of the request.
        number: of the continuation.
    """
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def prompt_seed(seed: int, number: int) -> int:
    """The seed of one of many prompts that are asked with the same seed, in [0, 2⁶³).

    The first prompt has `seed` itself; the others have a hash, so that equal prompts get
    different draws.

    Args:
        number: of the prompt, from 0.
    """
    if not number:
        return seed
    digest = hashlib.sha256(f"prompt {number} of {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
