"""Ways to break the folder of a model, and what an import of it is to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_files import Kind

Bc2 = Callable[..., Any]
Break = Callable[[Path], None]

USAGE, DATA, DISK = 2, 3, 6


@dataclass(frozen=True)
class Case:
    """A folder that is broken in one way, and what is to be said of it."""

    break_it: Break
    says: tuple[str, ...]
    model: str = "llama3"
    kind: Kind = "safetensors"
    shards: int = 1
    code: int = DATA


#: Breaks a copy of a case's model, imports it, and looks at what is said and left.
Check = Callable[[Case], None]


def text(name: str, content: str | bytes) -> Break:
    """Another content for a file."""

    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def raw(change: Callable[[bytes], bytes], name: str = "model.safetensors") -> Break:
    """Other bytes for a file."""

    def rewrite(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def removed(*names: str) -> Break:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def refused(bc2: Bc2, case: Case, source: object, *options: str) -> None:
    """Import something, which is refused as a case says."""
    done = bc2("registry", "import", source, *options)
    said = done.err + done.out
    assert done.code == case.code, said
    errors = [line for line in done.err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, said
    assert errors[0].startswith("error"), said
    for words in case.says:
        assert words in " ".join(said.split()), said
