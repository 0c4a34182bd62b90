"""pass@k from n samples of which some are correct."""

from __future__ import annotations

from math import prod

from bc2.errors import UsageError


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate of Chen et al. 2021 (arXiv:2107.03374), equation 1.

    That is 1 - C(n - c, k) / C(n, k): how likely k of the n samples, drawn without putting
    any back, have a correct one among them. As a product no factor is above 1, so nothing
    overflows. The naive 1 - (1 - c/n)^k is biased, too low.

    Args:
        n: samples of one problem.
        correct: how many of them passed.
        k: how many may be tried, at most n.

    Raises:
        UsageError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n:
        raise UsageError(f"{correct} of {n} samples cannot be correct")
    if not 1 <= k <= n:
        raise UsageError(
            f"pass@{k} cannot be estimated from {n} samples", todo=f"draw at least {max(k, 1)}"
        )
    if n - correct < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(n - correct + 1, n + 1))
