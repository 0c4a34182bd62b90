"""What lies below ``home/artifacts``, by its names alone: nothing is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bc2.files import check_links
from bc2.registry import index as ix
from bc2.registry import queries
from bc2.registry.draft import KINDS, SHORT


def in_place(home: Path) -> Iterator[Path]:
    """Every directory below ``home/artifacts`` that has the form of an artifact's."""
    for kind in KINDS:
        for name in _directories(home / "artifacts" / kind):
            yield from filter(lambda at: is_artifact_name(at.name), _directories(name))


def _directories(folder: Path) -> list[Path]:
    """The directories in a directory, and links to them, sorted; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return []
    return [folder / name for name in names]


def is_artifact_name(name: str) -> bool:
    """Whether a directory is named as an artifact's is: 16 hex digits."""
    return len(name) == SHORT and not set(name) - set("0123456789abcdef")


def unknown(index: ix.Index, home: Path) -> list[Path]:
    """The directories in place that the index does not know."""
    with index.reading() as connection:
        known = queries.places(connection)
    return [folder for folder in in_place(home) if "/".join(folder.parts[-3:]) not in known]


def check_places(home: Path) -> None:
    """Raises: RunFailed if a part of the home is a link that points at nothing.

    Its artifacts are out of reach for now, which is no reason to forget them.
    """
    for kind in KINDS:
        folder = home / "artifacts" / kind
        check_links(folder)
        if folder.is_dir():
            for name in folder.iterdir():
                check_links(name)
