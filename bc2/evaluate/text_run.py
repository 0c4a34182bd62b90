"""`--bench text`: the likelihood of one's own texts, as scores that are registered."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bc2.console import note, progress
from bc2.data.documents import Document
from bc2.data.inputs import DigestCache, source_files
from bc2.data.readers import documents_at, source_at
from bc2.errors import DataError
from bc2.evaluate.answer_journal import AnswerJournal, Unit
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.text_likelihood import (
    TextLikelihood,
    TextScores,
    first_token_from,
    measure_part,
)
from bc2.files import replace_durably, sha256_json
from bc2.recipe import Settings
from bc2.registry import Artifact

#: The name that ``--bench`` takes.
TEXT: Literal["text"] = "text"

#: Documents of a unit of work.
_UNIT = 64

#: In the artifact.
TEXT_FILE = "text.json"


class TextEvalSettings(Settings):
    """What decides the likelihood of texts; recorded in place of a recipe."""

    suite: Literal["text"] = TEXT

    stride: int = Field(gt=0)
    """Tokens that each window of a document predicts after its first window."""

    limit: int | None = Field(default=None, gt=0)
    """The most documents that are read; None: all."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the weights."""

    data: str
    """Digest of the files."""


@dataclass(frozen=True)
class TextFiles:
    """Files of texts."""

    path: str
    """A file, a folder or a glob."""
    digests: Mapping[str, str]
    """Name -> hex SHA-256."""

    @classmethod
    def open(cls, path: Path | None) -> TextFiles:
        """Read every file through once.

        Raises:
            DataError: there is none.
        """
        if path is None:
            raise DataError("no text is given", todo="give a file: --bench text --data FILE")
        files = source_files(source_at(str(path)))
        cache = DigestCache(None)
        return cls(str(path), {file.name: cache.digest(file.path)[1] for file in files})

    @property
    def digest(self) -> str:
        """Of all files."""
        return sha256_json(dict(self.digests))

    def documents(self, limit: int | None) -> Iterator[Document]:
        """The documents, in order."""
        return itertools.islice(documents_at([self.path]), limit)


@dataclass
class TextRun:
    """The texts, the model, and how they are measured."""

    files: TextFiles
    settings: TextEvalSettings
    holder: ModelHolder
    start_ranks: Callable[[TextEvalSettings, Path, str], None] | None = None
    """Starts ranks that measure into a work folder, given the name of their claims, and waits for
    them; None: this process measures."""

    def measure_all(self, work: Path) -> TextLikelihood:
        """Measure what is unmeasured in a work folder, and put all together."""
        claims = f"claims-{uuid.uuid4().hex}"
        journal = AnswerJournal(work, claims)
        if self.start_ranks is not None:
            self.start_ranks(self.settings, work, claims)
        else:
            self.measure(journal)
        total = TextLikelihood()
        for path in sorted(journal.folder.glob("*.json")):
            state = _state(path)
            assert state is not None, "a part was measured and cannot be read"
            total.merge(state)
        return total

    def measure(self, journal: AnswerJournal) -> None:
        """Measure every unit of documents that nobody has measured or taken.

        A unit is measured in one go, so its figures do not depend on where work was interrupted.
        """
        known = len(list(journal.folder.glob("*.json")))
        if known:
            note(f"going on: {known * _UNIT:,} documents are measured already")
        documents = self.files.documents(self.settings.limit)
        with progress(TEXT, None, "documents") as bar:
            for first in itertools.count(0, _UNIT):
                part = list(itertools.islice(documents, _UNIT))
                if not part:
                    return
                unit = Unit(TEXT, first, first + len(part))
                path = journal.folder / f"{unit.name}.json"
                if _state(path) is None and journal.claim(unit):
                    measured = measure_part(
                        self.holder.engine, self.holder.tokenizer, part, self.settings.stride
                    )
                    replace_durably(path, json.dumps(measured.state()).encode())
                bar(len(part))

    def write(self, work: Path, out: Path) -> dict[str, Any]:
        """Measure, write the payload and return the facts to record."""
        scores = TextScores(
            self.measure_all(work), self.holder.window, self.settings.stride,
            first_token_from(self.holder.tokenizer),
        )  # fmt: skip
        result = scores.as_json()
        text = json.dumps(result, ensure_ascii=False, indent=2)
        (out / TEXT_FILE).write_text(text + "\n", encoding="utf-8")
        total = result["total"]
        return {
            "suite": TEXT,
            "metric": "bits_per_byte",
            "score": total["bits_per_byte"],
            "stderr": total["bits_per_byte_stderr"],
            "samples": total["documents"],
            "data": {"origin": self.files.path, "files": dict(self.files.digests)},
        }


def _state(path: Path) -> dict[str, Any] | None:
    """What a unit was measured as; None if it was not, or its file is damaged."""
    try:
        state: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return state


def read_text_scores(artifact: Artifact) -> dict[str, Any]:
    """The figures of registered likelihoods.

    Raises:
        IntegrityError: the file is not what was published.
    """
    found: dict[str, Any] = json.loads(artifact.file(TEXT_FILE).read_bytes())
    return found
