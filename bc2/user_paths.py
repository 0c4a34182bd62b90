"""Paths as a person writes them: ``~`` is a home directory, which a user may not have."""

from __future__ import annotations

from pathlib import Path

from bc2.errors import UsageError


def expand_user(path: str | Path, what: str) -> Path:
    """A path with a home directory in place of its ``~`` or ``~user``, as a shell does it.

    Args:
        path: relative or absolute.
        what: what named it, for the message: an option, a variable.

    Raises:
        UsageError: there is no such user, or it has no home directory.
    """
    if not str(path).startswith("~"):  # ``./~x`` has lost its dot as a Path
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        first = Path(path).parts[0]
        named = len(first) > 1
        whose = f"there is no user {first[1:]!r}" if named else "this user has no home directory"
        raise UsageError(
            f"{what} begins with {first!r}, and {whose}",
            where=str(path),
            todo="write the path in full" if named else "write the path in full, or set HOME",
        ) from None


def expand_if_known(path: str | Path) -> Path:
    """As `expand_user`, but a ``~`` that means nothing stays, as in a shell.

    For what need not be a path: a ref, a recipe's name.
    """
    try:
        return Path(path).expanduser() if str(path).startswith("~") else Path(path)
    except RuntimeError:
        return Path(path)
