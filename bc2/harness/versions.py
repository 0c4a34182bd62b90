"""Which prompts and metrics: lm-eval's version, and the files of its tasks and of our own."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path

from bc2.harness.suites import OWN_PREFIX, Suite

OWN_TASKS = Path(__file__).parent / "tasks"

#: Makes the programs of our tasks of code, and their metrics.
CODE_TASKS = Path(__file__).parent / "code_tasks.py"


def harness_version(suite: Suite) -> str:
    """Changes when a suite's task may have changed.

    lm-eval's version, a digest of our tasks, and one of lm-eval's files, which one may edit under
    one version: those of the task's folder; all, of a task that may lie anywhere.
    """
    found = f"lm-eval {version('lm-eval')}, tasks {_own_digest()[:16]}"
    if suite.task.startswith(OWN_PREFIX):
        return found
    return f"{found}, its files {_digest_below(suite.folder or '')[:16]}"


@cache
def _own_digest() -> str:
    digest = hashlib.sha256(CODE_TASKS.read_bytes())
    for path in sorted(OWN_TASKS.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(OWN_TASKS).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _digest_below(folder: str) -> str:
    spec = importlib.util.find_spec("lm_eval")  # found, and not imported
    assert spec is not None, "lm-eval is a dependency"
    assert spec.submodule_search_locations, "lm-eval is a package"
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    digest = hashlib.sha256()
    for path in sorted((tasks / folder).rglob("*")):
        if path.suffix != ".pyc" and path.is_file():
            digest.update(path.relative_to(tasks).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()
