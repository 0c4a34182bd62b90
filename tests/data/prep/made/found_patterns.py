"""Find the regular expressions of modules, and make text on which a bad one takes long."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Iterator
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

_parser: Any = importlib.import_module("re._parser")

#: Functions of `re` whose first argument is a pattern.
_FUNCTIONS = frozenset(
    ("compile", "search", "match", "fullmatch", "split", "findall", "finditer", "sub", "subn")
)

#: Each category of characters by one of them.
_CATEGORY = {"DIGIT": "7", "NOT_DIGIT": "x", "SPACE": " ", "NOT_SPACE": "x", "WORD": "a"}


#: What RE2 writes otherwise than `re`: ``\x{4E00}`` and ``\p{Han}``.
_RE2_CODE = re.compile(r"\\x\{([0-9A-Fa-f]+)\}")
_RE2_CLASS = re.compile(r"\\[pP]\{\^?\w+\}")


class Re2(NamedTuple):
    """A pattern that pyarrow runs in RE2, whose time is linear whatever the pattern."""

    pattern: str
    flags: int = 0

    def finditer(self, text: str) -> list[int]:
        """Count the matches."""
        return [pc.count_substring_regex(pa.array([text]), self.pattern)[0].as_py()]


Searcher = re.Pattern[str] | Re2


def modules_below(package: str) -> list[str]:
    """The names of all modules below a package."""
    root = importlib.import_module(package)
    return [found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.")]


def patterns_of(name: str) -> dict[str, Searcher]:
    """The patterns of a module, by where they are.

    They are compiled ones in its attributes (also inside tuples, lists, dicts and objects of bc2),
    and the patterns in calls of `re` and of pyarrow, as far as they depend on the module's
    attributes only.
    """
    module = importlib.import_module(name)
    found: dict[str, Searcher] = {}
    for attribute, value in vars(module).items():
        for path, pattern in _inside(value, attribute, set()):
            found.setdefault(path, pattern)
    for path, pattern in _called(module):
        found.setdefault(path, pattern)
    once = {each.pattern: path for path, each in reversed(found.items())}
    return {path: found[path] for path in reversed(once.values())}


def _inside(value: Any, path: str, seen: set[int]) -> Iterator[tuple[str, re.Pattern[str]]]:
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield path, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif type(value).__module__.startswith("bc2."):
        parts = list(getattr(value, "__dict__", {}).items())
    for key, part in parts:
        yield from _inside(part, f"{path}[{key}]", seen)


def _called(module: ModuleType) -> Iterator[tuple[str, Searcher]]:
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        engine, function = ast.unparse(node.func.value), node.func.attr
        if engine == "re" and function in _FUNCTIONS and node.args:
            pattern = _value(node.args[0], module)
            if pattern is not None:
                once = function in ("match", "fullmatch")  # these do not try every place
                yield f"line {node.lineno}", re.compile(rf"\A(?:{pattern})" if once else pattern)
        elif engine == "pc" and function.endswith("_regex") and len(node.args) > 1:
            pattern = _value(node.args[1], module)
            if pattern is not None:
                yield f"line {node.lineno}", Re2(pattern)


def _value(node: ast.expr, module: ModuleType) -> str | None:
    """The string that an expression of module attributes is; None for one of local variables."""
    try:
        value = eval(compile(ast.Expression(node), module.__name__, "eval"), dict(vars(module)))
    except NameError:
        return None
    return value if isinstance(value, str) else None


def hostile_texts(pattern: Searcher, length: int) -> Iterator[str]:
    """Runs of each of a pattern's own characters and words, of pairs of them, and of blocks.

    Characters that the pattern cannot tell apart count once.
    """
    units = units_of(pattern)
    for unit in units:
        yield _repeated(unit, length)
    for one, two in product(units, units):
        if one != two:
            yield _repeated(one + two, length)
            yield _repeated(one * 30 + two, length)


def _repeated(unit: str, length: int) -> str:
    return (unit * (length // len(unit) + 1))[:length]


def units_of(pattern: Searcher, most: int = 10) -> list[str]:
    """Characters of a pattern, one of each kind, and its words; `most` of each at most."""
    sets: list[re.Pattern[str]] = []
    characters: dict[str, None] = {}
    words: dict[str, None] = {}
    source = _RE2_CLASS.sub(r"\\w", _RE2_CODE.sub(_character, pattern.pattern))
    _read(_parser.parse(source, pattern.flags & ~re.DEBUG), characters, words, sets)
    by_kind: dict[tuple[bool, ...], str] = {}
    for character in (*characters, "x", "\n"):
        kind = tuple(each.match(character) is not None for each in sets)
        by_kind.setdefault(kind, character)
    kinds = list(by_kind.values())
    return [*_spread(kinds, most), *_spread([w for w in words if len(w) > 1], most // 4)]


def _character(code: re.Match[str]) -> str:
    return re.escape(chr(int(code[1], 16)))


def _spread(items: list[str], most: int) -> list[str]:
    """At most so many items, from everywhere in a list."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _read(
    parsed: Any, characters: dict[str, None], words: dict[str, None], sets: list[re.Pattern[str]]
) -> None:
    """Collect a parsed pattern's characters, runs of literals, and sets of characters."""
    word = ""
    for operation, argument in parsed:
        name = str(operation)
        if name == "LITERAL":
            characters[chr(argument)] = None
            sets.append(re.compile(re.escape(chr(argument))))
            word += chr(argument)
            continue
        if word:
            words[word] = None
        word = ""
        if name == "IN":
            members = list(_members(argument))
            characters.update(dict.fromkeys(members))
            sets.append(re.compile("[" + "".join(map(re.escape, members)) + "]"))
        elif name == "NOT_LITERAL":
            characters[chr(argument)] = None
            sets.append(re.compile(re.escape(chr(argument))))
        else:
            for inner in _nested(argument):
                _read(inner, characters, words, sets)
    if word:
        words[word] = None


def _members(argument: Any) -> Iterator[str]:
    """Some characters of a set: its literals, and the ends and middle of its ranges."""
    for kind, value in argument:
        if str(kind) == "LITERAL":
            yield chr(value)
        elif str(kind) == "RANGE":
            yield from (chr(value[0]), chr((value[0] + value[1]) // 2), chr(value[1]))
        elif str(kind) == "CATEGORY":
            yield _CATEGORY.get(str(value).removeprefix("CATEGORY_"), "-")


def _nested(argument: Any) -> Iterator[Any]:
    """The parsed patterns inside the argument of an operation."""
    if isinstance(argument, _parser.SubPattern):
        yield argument
    elif isinstance(argument, (tuple, list)):
        for part in argument:
            yield from _nested(part)
