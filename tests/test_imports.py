"""Every module can be the first of bc2 that a process imports: a command starts with any.

While modules import one another in a circle, some of them can be first and others cannot.
"""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import bc2.commands
import pytest

import bc2

#: Code that transformers imports from the folder of an export, where it finds relative names alone.
REMOTE_CODE = "bc2.convert.exporting.remote_code."

MODULES = {
    found.name: Path(str(spec.origin))
    for package in (bc2, bc2.commands)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not found.name.endswith(".__main__")
    and not found.name.startswith(REMOTE_CODE)
    and (spec := importlib.util.find_spec(found.name)) is not None
}


def run_at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module that its import runs, those inside of others too."""
    for node in nodes:
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from run_at_import(node.orelse)
            continue
        for below in ("body", "orelse", "finalbody"):
            yield from run_at_import(getattr(node, below, []))
        for handler in getattr(node, "handlers", []):
            yield from run_at_import(handler.body)


def imported_by(name: str, source: str) -> set[str]:
    """The modules of bc2 that a module imports while it is imported."""
    found = set()
    for node in run_at_import(ast.parse(source).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import, which is not looked into"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else str(node.module))
    return found & MODULES.keys()


def test_what_an_import_runs_is_known() -> None:
    source = """
import os, bc2.errors
if TYPE_CHECKING:
    from bc2.recipe import Recipe
else:
    import bc2.files
try:
    from bc2.registry import Registry, queries
except ImportError:
    import bc2.cli
class A:
    from bc2.ranks import first
    def later(self):
        from bc2.console import note
"""
    assert imported_by("x", source) == {
        "bc2.errors", "bc2.files", "bc2.registry", "bc2.registry.queries", "bc2.cli", "bc2.ranks",
    }  # fmt: skip


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert len(MODULES) > 200
    graph = {name: imported_by(name, path.read_text()) for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


#: Of other projects, and slow to import.
OTHERS = [
    "torch._dynamo", "datasets", "matplotlib.figure", "pyarrow.parquet", "pydantic", "rich.table",
    "scipy.optimize", "sentencepiece", "sqlalchemy", "typer",
]  # fmt: skip

FORK_EACH = """\
import importlib, os, sys, traceback

others, modules = sys.argv[1].split(","), sys.argv[2].split(",")
for name in others:
    importlib.import_module(name)
assert not [name for name in sys.modules if name.partition(".")[0] == "bc2"]
for name in modules:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_alone() -> None:
    command = [sys.executable, "-P", "-c", FORK_EACH, ",".join(OTHERS), ",".join(MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-3000:]
