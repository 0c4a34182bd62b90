"""Algorithms of other packages: an entry point each, of the group ``bc2.algorithms``.

Its name is the recipe's section and the verb, its value the "module:NAME" of an
`bc2.train.algorithm.Algorithm`. They are looked for only when a section or a verb is not one of
bc2's own, so that they cost nothing where there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

GROUP = "bc2.algorithms"


@cache
def foreign_algorithms() -> Mapping[str, str]:
    """The "module:NAME" of each algorithm that an installed package brings, by its section."""
    from importlib.metadata import entry_points

    return {each.name: each.value for each in entry_points(group=GROUP)}
