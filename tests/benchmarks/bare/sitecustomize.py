"""Makes an environment look bare: only some distributions, and what they require, can be imported.

Put on PYTHONPATH, it is run by every Python process at its start. What is installed beside them is
found neither by imports nor by `find_spec`, as if it were not there.
"""

import importlib.machinery
import importlib.metadata
import re
import sys

#: What benchmarks/gpu.py says it needs.
ALLOWED = (
    "torch", "typer", "rich", "safetensors", "sentencepiece", "pyarrow", "scipy", "psutil",
    "transformers",
)  # fmt: skip

#: Required by some versions of those, and yet absent on the machine that is meant.
ABSENT = {"pydantic", "pydantic_core"}


def _normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure():
    """The allowed distributions and what they require, without extras."""
    found, todo = set(), list(ALLOWED)
    while todo:
        name = _normal(todo.pop())
        if name in found:
            continue
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


def _hidden():
    """Top-level names of all other distributions."""
    allowed = _closure()
    owners = importlib.metadata.packages_distributions()
    return {name for name, of in owners.items() if not allowed & {_normal(one) for one in of}}


HIDDEN = frozenset((_hidden() | ABSENT) - {"bc2"})


class _Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[:] = [
    _Bare if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path
]
