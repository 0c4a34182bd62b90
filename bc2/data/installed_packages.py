"""The Python sources of installed packages, as text: found by their records, never imported.

Which packages there are, and in which versions, is up to the environment: a corpus of it is the
same on two machines only where they have the same packages. A recipe names them by ``include``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bc2.data.documents import Drops, SourceFile, SourceRow
from bc2.streams import BadRow, open_bytes

#: What an editable install leaves among the packages: it holds paths of this machine.
_EDITABLE = "__editable__"

#: A licence's own text may stand where its name should.
_NAME_LENGTH = 60


class InstalledPackage(NamedTuple):
    """A package of this environment."""

    name: str
    version: str
    licence: str | None
    """As its metadata states it."""
    files: tuple[SourceFile, ...]
    """Its Python sources; names relative to where packages are installed."""


def installed_packages() -> tuple[InstalledPackage, ...]:
    """The packages that this interpreter can import and that have sources, bc2 left out."""
    return _installed_on(tuple(sys.path))


@functools.cache
def _installed_on(path: tuple[str, ...]) -> tuple[InstalledPackage, ...]:
    found: dict[str, InstalledPackage] = {}
    for one in importlib.metadata.distributions(path=list(path)):
        name = re.sub(r"[-_.]+", "-", one.metadata["Name"] or "").lower()
        # Of two with one name the first on the path is the one that is imported.
        if name and name != "bc2" and name not in found:
            found[name] = InstalledPackage(name, one.version, _licence(one), _sources(one))
    return tuple(package for _, package in sorted(found.items()) if package.files)


def _licence(one: importlib.metadata.Distribution) -> str | None:
    """A package's licence by name, from the fields that packages state it in."""

    def stated(field: str) -> list[str]:
        return [str(value) for value in one.metadata.get_all(field) or ()]

    named = [
        line.rpartition(" :: ")[2] for line in stated("Classifier") if line.startswith("License ::")
    ]
    short = [
        text for text in stated("License") if "\n" not in text and 0 < len(text) <= _NAME_LENGTH
    ]
    found = stated("License-Expression") or named or short
    return " and ".join(found) if found else None


def _sources(one: importlib.metadata.Distribution) -> tuple[SourceFile, ...]:
    root = Path(str(one.locate_file("")))
    names = sorted(
        file.as_posix()
        for file in one.files or ()
        if file.suffix == ".py" and ".." not in file.parts and not str(file).startswith(_EDITABLE)
    )
    return tuple(SourceFile(name, root / name) for name in names if (root / name).is_file())


def package_files() -> list[SourceFile]:
    """The sources of all packages; a file that two packages bring comes once."""
    found = {file.name: file for package in installed_packages() for file in package.files}
    return list(found.values())


def package_rows(files: list[SourceFile], drops: Drops) -> Iterator[SourceRow]:
    """A module a document, in the encoding that it declares."""
    for file in files:
        with open_bytes(file.path) as stream:
            data = stream.read()
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            text = data.decode(encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            bad = BadRow("bad_utf8", f"no text in the encoding of the module: {error}")
            drops.reject(bad, str(file.path), 1, len(data))
            continue
        yield SourceRow.of(text, file.name, 1)


def packages_of(files: Sequence[SourceFile]) -> list[InstalledPackage]:
    """The packages that given files are of."""
    names = {file.name for file in files}
    return [one for one in installed_packages() if any(f.name in names for f in one.files)]
