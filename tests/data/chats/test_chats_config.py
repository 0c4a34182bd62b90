"""[chats]: what a source has to say, and what enters the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.chats_stage import STAGE


def config(*sources: dict[str, Any], **more: Any) -> ChatsConfig:
    return ChatsConfig(sources=tuple(ChatSourceConfig(**source) for source in sources), **more)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"name": "a"}, "exactly one of path, hf, environment; got none"),
        ({"name": "a", "path": "x", "environment": "instructions"}, "got path and environment"),
        ({"name": "a", "environment": "python-docs"}, "Input should be 'instructions'"),
        ({"name": "a", "path": "x", "split": "test"}, "belong to hf"),
        ({"name": "a", "path": "x", "format": "chatml"}, "'auto', 'messages'"),
        ({"name": "a", "path": "x", "times": 0.0}, "greater than 0"),
        ({"name": "a/b", "path": "x"}, "pattern"),
    ],
)
def test_a_source_that_is_wrong(source, why):
    with pytest.raises(ValidationError, match=why):
        config(source)


def test_names_differ_in_more_than_case():
    with pytest.raises(ValidationError, match="two sources are named 'web'"):
        config({"name": "Web", "path": "x"}, {"name": "web", "path": "y"})


def test_the_key_is_contents_and_settings_and_not_places(tmp_path: Path):
    def key(folder: str, text: str, **more: Any) -> Any:
        path = tmp_path / folder / "a.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return STAGE.identity_of(config({"name": "a", "path": str(path), **more}), tmp_path)

    first = key("one", "{}")
    assert first == key("two", "{}")
    assert first != key("two", "{} ")
    assert first != key("two", "{}", times=2.0)
    assert first != key("two", "{}", format="alpaca")
