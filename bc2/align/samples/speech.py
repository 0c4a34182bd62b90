"""The model that alignment begins with, and the layout by which it reads and writes turns."""

from __future__ import annotations

from pathlib import Path

from bc2.align.samples.rendered_chats import ChatSource
from bc2.console import warn
from bc2.errors import DataError, RecipeError, RefError
from bc2.files import canonical_json
from bc2.generate.generation_defaults import GENERATION_FILE
from bc2.registry import Artifact
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import chat_named, read_chat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_path
from bc2.train.algorithm import INIT
from bc2.train.run import Run


def chat_source(
    folder: Path, data: Artifact, base: Artifact, chat_layout: str | None, section: str
) -> ChatSource:
    """Conversations, and the layout by which the model is to see them.

    Args:
        folder: of the conversations, in the artifact `data`.
        chat_layout: the layout that a recipe's section names.
        section: of the recipe, for errors.

    Raises:
        DataError: the model has no layout and none is named, or the tokenizer lacks its tokens.
        IntegrityError: a file is not what was published.
    """
    for name in data.files():
        data.file(name)
    layout = _layout(base, chat_layout, section)
    return ChatSource(folder, data.digest, tokenizer_path(base), layout.to_json())


def _layout(base: Artifact, chat_layout: str | None, section: str) -> Chat:
    """The layout that the model is taught, or that it has."""
    tokenizer = Tokenizer.load(tokenizer_path(base))
    own = read_chat(base.file(CHAT_FILE), tokenizer) if CHAT_FILE in base.files() else None
    if chat_layout is not None:
        if own is not None and own.name != chat_layout:
            warn(f"{base.title} speaks by the layout {own.name}, and is now taught {chat_layout}")
        return chat_named(chat_layout, tokenizer)
    if own is None:
        raise DataError(
            f"{base.title} has no chat layout, so it is not known how turns are written",
            where=str(base.path),
            todo=f'name one: {section}.chat_layout = "baichuan" for models trained by bc2, or '
            '"chatml" or "llama3" where the tokenizer has their tokens',
        )
    return own


def write_speech(run: Run, folder: Path, chat_layout: str | None) -> None:
    """Write into a checkpoint the layout that it was taught, and how its base is sampled."""
    base = run.inputs.one(INIT.name)
    if chat_layout is not None:  # else its base's is there already
        (folder / CHAT_FILE).write_bytes(canonical_json({"layout": chat_layout}).encode())
    if GENERATION_FILE in base.files():
        (folder / GENERATION_FILE).write_bytes(base.file(GENERATION_FILE).read_bytes())


def check_speaks(base: Artifact, where: str) -> None:
    """Raises: RefError if the model that a run begins with says no next token."""
    if base.manifest.role == "reward":
        raise RefError(
            f"{base.title} is a reward model, which says no next token",
            where=where,
            todo="name a base or chat model: bc2 registry list --kind checkpoint",
        )


def check_vocabulary(base: Artifact, run: Run) -> None:
    """Raises: RecipeError if the model has no row for each piece of its tokenizer."""
    pieces = Tokenizer.load(tokenizer_path(base)).vocab_size
    if run.model.vocab_size < pieces:
        raise RecipeError(
            f"model.vocab_size = {run.model.vocab_size} is smaller than the {pieces} pieces of the "
            f"tokenizer of {base.title}",
            where=run.settings.recipe.where(("model", "vocab_size")),
            todo="leave [model] out of the recipe: it is that of init then",
        )


def pad_id(source: ChatSource) -> int:
    """What fills rows up: nothing attends to it and it learns nothing, so any id will do."""
    return max(0, Tokenizer.load(source.tokenizer).eos_id)
