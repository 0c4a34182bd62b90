"""Where bc2 keeps what it can make again: of the machine, not of a home."""

from __future__ import annotations

import os
from pathlib import Path

from bc2.user_paths import expand_user


def cache_folder() -> Path:
    """``$BC2_CACHE``, else ``$XDG_CACHE_HOME/bc2``, else ``~/.cache/bc2``. It may not exist yet.

    Raises:
        UsageError: ``$BC2_CACHE`` begins with a ``~`` that means nothing.
        RuntimeError: neither is set, and the user has no home directory.
    """
    own = os.environ.get("BC2_CACHE")
    if own:
        return expand_user(own, "BC2_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The convention says: a relative path there is invalid and to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "bc2"
