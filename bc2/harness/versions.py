"""Which prompts and metrics: the versions of lm-eval and of our own tasks."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

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
