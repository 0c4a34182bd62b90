"""Algorithms of other packages: an entry point each, of the group ``bc2.algorithms``.

Its name is the recipe's section and the verb, its value the "module:NAME" of an
`bc2.train.algorithm.Algorithm`. They are looked for only when a section or a verb is not one of
bc2's own, so that they cost nothing where there are none.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from bc2.errors import UsageError

GROUP = "bc2.algorithms"


@cache
def foreign_algorithms() -> Mapping[str, str]:
    """The "module:NAME" of each algorithm that an installed package brings, by its section.

    Raises:
        UsageError: two packages bring one of the same name.
    """
    from importlib.metadata import entry_points

    found: dict[str, str] = {}
    for each in entry_points(group=GROUP):
        if found.setdefault(each.name, each.value) != each.value:
            raise UsageError(
                f"two packages bring an algorithm {each.name!r}: {found[each.name]} and "
                f"{each.value}",
                where=f"entry points of {GROUP}",
                todo="uninstall one of the packages",
            )
    return found


def foreign_algorithm(section: str) -> Any:
    """The `bc2.train.algorithm.Algorithm` of a section of `foreign_algorithms`.

    Raises:
        UsageError: its package is broken.
    """
    name = foreign_algorithms()[section]
    module, _, attribute = name.partition(":")
    try:
        algorithm = getattr(importlib.import_module(module), attribute)
        if isinstance(algorithm, type):
            raise TypeError(f"{attribute} is a class; name an instance of it")
        own = algorithm.section.section
    except Exception as error:
        raise _broken(section, name, repr(error)) from error
    if own != section:
        raise _broken(section, name, f"its section is [{own}]")
    return algorithm


def _broken(section: str, name: str, why: str) -> UsageError:
    return UsageError(
        f"the algorithm {section!r} of another package cannot be used: {why}",
        where=f"entry point {section} = {name} of {GROUP}",
        todo="mend that package, or uninstall it",
    )
