from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_chats import CHATML_TEMPLATE
from made_json_tokenizers import qwen_like

from bc2.errors import DataError
from bc2.registry import Draft, Registry
from bc2.tokenizer.chat_file import chat_bytes, chat_named, chat_of, read_chat
from bc2.tokenizer.chat_template import TemplateChat
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import CHAT_FILE, tokenizer_path

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    return Tokenizer.from_bytes(qwen_like())


def test_a_layout_is_read_as_it_was_written(qwen: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / CHAT_FILE
    for chat in (
        chat_named("chatml", qwen),
        TemplateChat(CHATML_TEMPLATE, qwen, {"eos_token": "<|im_end|>"}),
    ):
        path.write_bytes(chat_bytes(chat))
        again = read_chat(path, qwen)
        assert chat_bytes(again) == path.read_bytes()
        assert again.render(HELLO) == chat.render(HELLO)
        assert again.name == chat.name


def test_no_such_layout_is_an_error(qwen: Tokenizer) -> None:
    with pytest.raises(DataError, match="no such chat layout: 'chatlm'") as raised:
        chat_named("chatlm", qwen)
    assert raised.value.todo == "did you mean 'chatml'?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a chat layout"),
        ("[]", "not an object with a `layout`"),
        ('{"layout": 3}', "not an object with a `layout`"),
        ('{"layout": "jinja"}', "needs a `template`"),
        ('{"layout": "jinja", "template": "x", "tokens": {"eos_token": 3}}', "needs a `template`"),
        ('{"layout": "llama3"}', "needs the special token"),
    ],
)
def test_what_is_no_layout_is_refused(
    qwen: Tokenizer, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / CHAT_FILE
    path.write_text(content)
    with pytest.raises(DataError, match=said) as raised:
        read_chat(path, qwen)
    assert str(path) in (raised.value.where or "")


def published(home: Path, **files: bytes) -> Any:
    registry = Registry.open(home)
    with registry.stage(Draft("checkpoint", "made", "0" * 64)) as staged:
        for name, content in files.items():
            (staged.path / name.replace("_", ".")).write_bytes(content)
        return staged.publish()


def test_a_model_without_a_layout_is_an_error_where_chat_is_asked(
    qwen: Tokenizer, tmp_path: Path
) -> None:
    artifact = published(tmp_path / "home", tokenizer_json=qwen_like())
    assert tokenizer_path(artifact).name == "tokenizer.json"
    with pytest.raises(DataError, match="checkpoint/made has no chat layout"):
        chat_of(artifact, qwen)


def test_the_layout_of_a_model(qwen: Tokenizer, tmp_path: Path) -> None:
    layout = json.dumps({"layout": "chatml"}).encode()
    artifact = published(tmp_path / "home", tokenizer_json=qwen_like(), chat_json=layout)
    assert chat_of(artifact, qwen).name == "chatml"


def test_an_artifact_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    artifact = published(tmp_path / "home", other_txt=b"x")
    with pytest.raises(DataError, match=r"holds neither tokenizer\.model nor tokenizer\.json"):
        tokenizer_path(artifact)
