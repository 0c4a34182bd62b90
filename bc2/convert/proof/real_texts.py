"""The texts of a proof: of the model's own corpus where it is still registered, else of here.

What every machine has are a few pages of Chinese, English and code that come with bc2, and the
modules of Python's own library.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bc2.data.corpus import read_corpus
from bc2.data.splits import SPLITS
from bc2.errors import Bc2Error, DataError, from_os_error
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import trace

_OURS = Path(__file__).parent / "texts"

#: Modules of Python's library whose texts are code, and English about it.
_MODULES = ("argparse", "statistics", "textwrap", "heapq", "random", "fractions")

#: So many documents of a corpus are read, and no more of a text than this.
_DOCUMENTS = 200
_CHARACTERS = 20_000


@dataclass(frozen=True)
class RealTexts:
    """Texts, and where they are from."""

    texts: tuple[str, ...]
    title: str

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the texts, each ended by a byte that no UTF-8 has."""
        found = hashlib.sha256()
        for text in self.texts:
            found.update(text.encode("utf-8", "surrogatepass") + b"\xff")
        return found.hexdigest()


def proof_texts(artifact: Artifact, data: Path | None) -> RealTexts:
    """What a person names, else the model's own corpus and the texts of here.

    Args:
        data: a file of text in UTF-8; paragraphs are apart by empty lines.

    Raises:
        DataError: the file cannot be read, is no text, or is empty.
    """
    if data is not None:
        return RealTexts(tuple(_of_file(data)), data.name)
    own, title = _of_lineage(artifact)
    here = [*_pages(), *_modules()]
    texts = (text for text in (*own, *here) if text)
    return RealTexts(tuple(texts), f"{title} and bc2's own pages" if own else "bc2's own pages")


def _of_file(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except IsADirectoryError:
        raise DataError("a folder, and no text", where=str(path), todo="name a file") from None
    except OSError as error:
        raise from_os_error(error, "reading the text of the proof") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", where=str(path)) from None
    if not text.strip():
        raise DataError("there is no text in it", where=str(path), todo="give another file")
    return [part[:_CHARACTERS] for part in text.split("\n\n") if part.strip()]


def _of_lineage(artifact: Artifact) -> tuple[list[str], str]:
    """Documents of a corpus that the model comes from, those held out first; or none."""
    try:
        registry = Registry.open(artifact.path.parents[3])
        ancestors = trace(registry, artifact).nodes.values()
        corpus = next((one for one in ancestors if one is not None and one.kind == "corpus"), None)
        if corpus is None:
            return [], ""
        with corpus.hold():
            return list(islice(_documents(corpus), _DOCUMENTS)), corpus.title
    except Bc2Error:  # a corpus that is gone or damaged is none
        return [], ""


def _documents(corpus: Artifact) -> Iterator[str]:
    for split in reversed(SPLITS):
        for document in read_corpus(corpus.path, split):
            yield document.text[:_CHARACTERS]


def _pages() -> Iterator[str]:
    for name in ("zh", "en", "code"):
        yield from (_OURS / f"{name}.txt").read_text(encoding="utf-8").split("\n\n")


def _modules() -> Iterator[str]:
    library = Path(textwrap.__file__).parent
    for name in _MODULES:
        path = library / f"{name}.py"
        if path.is_file():
            yield path.read_text(encoding="utf-8")[:_CHARACTERS]
