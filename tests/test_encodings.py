"""No file is read or written in the encoding of the locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Position of the mode, and of the encoding, among the arguments of what opens text.
OPENERS = {"open": (1, 3), "fdopen": (1, 3), "TemporaryFile": (0, 2), "NamedTemporaryFile": (0, 2)}
TEXTS = {"read_text": 0, "write_text": 1}
PROCESSES = {"Popen", "run", "check_output"}


def unsaid(source: str) -> Iterator[int]:
    """Lines of calls that open text in whatever encoding the locale has."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in named:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        process = name in PROCESSES and ("text" in named or "universal_newlines" in named)
        file = name in TEXTS and len(node.args) <= TEXTS[name]
        if process or file or (name in OPENERS and _opens_text(node, name, named)):
            yield node.lineno


def _opens_text(node: ast.Call, name: str, named: dict[str | None, ast.expr]) -> bool:
    at, encoding = OPENERS[name]
    method = isinstance(node.func, ast.Attribute) and name == "open"
    if isinstance(node.func, ast.Attribute) and isinstance(
        node.func.value, ast.Name | ast.Attribute
    ):
        owner = getattr(node.func.value, "id", getattr(node.func.value, "attr", ""))
        if owner in ("os", "zipfile", "tarfile", "gzip") and name == "open":
            return False  # descriptors, archives; gzip's is binary
        if method and (owner[:1].isupper() or owner in ("self", "cls", "archive", "engine")):
            return False  # a class of ours, or one of its objects
    at, encoding = (at - 1, encoding - 1) if method else (at, encoding)
    if len(node.args) > encoding:
        return False
    mode = named.get("mode", node.args[at] if len(node.args) > at else None)
    if mode is None:
        return not name.endswith("TemporaryFile")  # w+b
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("open(p)", True), ("open(p, 'rb')", False), ("open(p, 'w', encoding='utf-8')", False),
        ("p.open()", True), ("p.open('ab')", False), ("p.open('w')", True),
        ("os.open(p, 0)", False),
        ("p.read_text()", True), ("p.read_text('utf-8')", False), ("p.write_text(x)", True),
        ("TextFiles.open(p)", False), ("os.fdopen(1, 'w')", True), ("Popen(c, text=True)", True),
        ("TemporaryFile()", False), ("TemporaryFile('w+')", True),
    ],
)  # fmt: skip
def test_what_is_found(call: str, found: bool) -> None:
    assert bool(list(unsaid(call))) == found


def test_every_text_file_has_its_encoding_said() -> None:
    files = [path for room in ("bc2", "commands") for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(files) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in unsaid(path.read_text())
    ]
    assert found == []
