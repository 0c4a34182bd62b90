"""Which prompts and metrics: the versions of lm-eval and of our own tasks, and their files."""

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


@cache
def harness_version() -> str:
    """Changes when a task may have changed: lm-eval's version, and a digest of our tasks."""
    digest = hashlib.sha256(CODE_TASKS.read_bytes())
    for path in sorted(OWN_TASKS.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(OWN_TASKS).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return f"lm-eval {version('lm-eval')}, tasks {digest.hexdigest()[:16]}"


def task_files_digest(suite: Suite) -> str:
    """Changes when lm-eval's files of a suite's task do: one may edit them under one version.

    Of a task that may lie anywhere all of lm-eval's are looked at, by size and time. Our own tasks
    are in `harness_version`.
    """
    if suite.task.startswith(OWN_PREFIX):
        return ""
    return _digest_below(suite.folder)


@cache
def _digest_below(folder: str | None) -> str:
    spec = importlib.util.find_spec("lm_eval")  # found, and not imported
    assert spec is not None, "lm-eval is a dependency"
    assert spec.submodule_search_locations, "lm-eval is a package"
    tasks = Path(spec.submodule_search_locations[0]) / "tasks"
    digest = hashlib.sha256()
    for path in sorted((tasks / (folder or "")).rglob("*")):
        if path.suffix != ".pyc" and path.is_file():
            digest.update(path.relative_to(tasks).as_posix().encode() + b"\0")
            stat = path.stat()
            digest.update(
                path.read_bytes() if folder else f"{stat.st_size} {stat.st_mtime_ns}".encode()
            )
    return digest.hexdigest()
