"""The folder where bc2 keeps what belongs to the machine, not to a home of artifacts."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """``$BC2_CACHE``, else ``$XDG_CACHE_HOME/bc2``, else ``~/.cache/bc2``; it need not exist.

    None: of a user without a home directory. As the standard asks, a ``$XDG_CACHE_HOME`` that
    is not absolute is ignored.
    """
    if own := os.environ.get("BC2_CACHE"):
        return Path(own).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "bc2"
    try:
        return Path.home() / ".cache" / "bc2"
    except RuntimeError:  # a user without a home directory
        return None
