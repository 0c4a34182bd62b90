"""Files of conversations: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest

from bc2.chat.dialogue import Dialogue
from bc2.chat.saved import read_saved, write_saved
from bc2.errors import DataError, UsageError
from bc2.registry import Artifact
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made_checkpoints.register(tmp_path_factory.mktemp("home"), "one")


@pytest.fixture
def dialogue() -> Dialogue:
    chat = chat_named("baichuan", Tokenizer.from_bytes(made_checkpoints.tokenizer_bytes()))
    dialogue = Dialogue(chat, 512, "天地")
    dialogue.add(dialogue.ask("what is\nfour?", 8), [401, 402, 3], "fo\ufffd")
    return dialogue


def test_a_conversation_is_read_as_it_was_written(
    dialogue: Dialogue, artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "c.json"
    write_saved(path, dialogue, {"top_k": 5}, artifact)
    found = read_saved(path)
    assert found.rounds == tuple(dialogue.rounds)
    assert (found.title, found.digest) == ("checkpoint/one", artifact.digest)
    assert (found.system, found.sampling, found.intact) == ("天地", {"top_k": 5}, True)
    assert '"system": "天地"' in path.read_text("utf-8")
    # It is replaced by what is said later.
    dialogue.add(dialogue.ask("\udfff", 8), [], "")
    write_saved(path, dialogue, {}, artifact)
    found = read_saved(path)
    assert (found.rounds, found.intact) == (tuple(dialogue.rounds), True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bc2_chat": 2}, "it does not say `bc2_chat: 1`"),
        ({"model": {"title": "x"}}, "`model` has no title and digest"),
        ({"system": 3}, "`system` is no text"),
        ({"sampling": []}, "`sampling` holds no settings"),
        ({"ids": [[1]]}, "`messages` and `ids` are no lists of the same length"),
        ({"ids": [[1], [True]]}, "`ids` are no lists of integers"),
        ({"ids": [[1], "ab"]}, "`ids` are no lists of integers"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "in turn"),
        ({"messages": [{"role": "user", "content": "a"}], "ids": [[1]]}, "in turn"),
        ({"messages": ["a", "b"]}, "in turn"),
    ],
)
def test_what_is_no_conversation(
    dialogue: Dialogue, artifact: Artifact, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "c.json"
    write_saved(path, dialogue, {}, artifact)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}))
    with pytest.raises(DataError, match="no saved conversation: ") as raised:
        read_saved(path)
    assert said in raised.value.what
    assert raised.value.where == str(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"text"', b"[" * 100_000])
def test_a_file_that_is_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no saved conversation: "):
        read_saved(path)


def test_another_file_is_not_replaced(
    dialogue: Dialogue, artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(UsageError, match="there is a file already, and not of a conversation"):
        write_saved(path, dialogue, {}, artifact)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="no such directory"):
        write_saved(tmp_path / "none" / "c.json", dialogue, {}, artifact)
    with pytest.raises(UsageError, match="is a directory"):
        write_saved(tmp_path, dialogue, {}, artifact)
    with pytest.raises(DataError, match="no such file"):
        read_saved(tmp_path / "none.json")
