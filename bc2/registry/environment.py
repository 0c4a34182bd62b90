"""What made an artifact: the code and the environment, recorded in its manifest.

Versions are read from package metadata, so that nothing heavy is imported.
"""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import bc2

PACKAGES = (
    "torch",
    "numpy",
    "sentencepiece",
    "tokenizers",
    "datasets",
    "pyarrow",
    "safetensors",
    "zstandard",
    "deepspeed",
    "lm-eval",
    "snownlp",
)


@cache
def code() -> dict[str, Any]:
    """The version of bc2 and, in a checkout of it, the git commit (``-dirty`` if changed)."""
    return {"bc2": bc2.__version__, "commit": _commit(Path(bc2.__file__).parents[1])}


@cache
def environment() -> dict[str, Any]:
    """Python, the platform, and the versions of the packages that results may depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """The commit checked out at `root`, or None: installed, no git, or a repository above it."""
    if not (root / ".git").exists():
        return None
    # No tag is wanted in the answer: only the commit, in full.
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    # Nor a lock on the repository, which someone may be committing to.
    command = ["git", "--no-optional-locks", "-C", str(root), *describe]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
