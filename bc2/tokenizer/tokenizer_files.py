"""The files that a tokenizer is in: alone, in a tokenizer's artifact, or in a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from bc2.errors import DataError

if TYPE_CHECKING:
    from bc2.registry import Artifact

#: A SentencePiece model, and the file of the tokenizers library; transformers' names for them.
MODEL_FILE = "tokenizer.model"
JSON_FILE = "tokenizer.json"

#: Where there are both, the first counts.
TOKENIZER_FILES = (MODEL_FILE, JSON_FILE)

#: The chat layout beside it, where there is one (`bc2.tokenizer.chat`).
CHAT_FILE = "chat.json"


def tokenizer_name(names: Collection[str]) -> str | None:
    """The tokenizer's file among the names of a folder's files; None without one."""
    return next((name for name in TOKENIZER_FILES if name in names), None)


def tokenizer_path(artifact: Artifact) -> Path:
    """An artifact's tokenizer file, found intact; so is the chat layout beside it, if any.

    Raises:
        DataError: the artifact has no tokenizer.
        IntegrityError: a file is not what was published.
    """
    names = artifact.files()
    name = tokenizer_name(names)
    if name is None:
        raise DataError(
            f"{artifact.title} holds neither {MODEL_FILE} nor {JSON_FILE}",
            where=str(artifact.path),
            todo="name an artifact with a tokenizer: bc2 registry list --kind tokenizer",
        )
    if CHAT_FILE in names:
        artifact.file(CHAT_FILE)
    return artifact.file(name)
