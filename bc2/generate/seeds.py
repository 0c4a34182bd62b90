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
