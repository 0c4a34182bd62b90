"""Whether pairs are in the right order: the one rule of every accuracy."""

from __future__ import annotations

from typing import Any, TypeVar

#: A tensor or an array.
T = TypeVar("T", bound=Any)


def right_order(differences: T) -> T:
    """1 where the chosen answer is above the rejected one, ½ for a tie, else 0: [P] -> [P].

    A tie counts as it would in the mean if a coin decided.
    """
    found: T = (differences > 0) + 0.5 * (differences == 0)
    return found
