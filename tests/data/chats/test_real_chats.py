"""Chats that people share, as they are: counts, speed, refusals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bc2.data.chats.chats import Chats
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.make_chats import make_chats
from bc2.errors import DataError

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "align"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/align, or BC2_TEST_DATA"),
]


def chats(out: Path, *names: str, **more: str) -> Chats:
    sources = tuple(ChatSourceConfig(name=Path(name).name, path=str(DATA / name)) for name in names)
    make_chats(ChatsConfig(sources=sources, **more), out)
    return Chats.open(out)


def test_alpaca_of_two_languages(tmp_path):
    made = chats(tmp_path, "alpaca_en_52k.jsonl.gz", "alpaca_zh_carbonz0.jsonl.gz")
    assert [source["rows"] for source in made.facts["sources"]] == [52_002, 20_465]
    empty = dict.fromkeys(made.sources, 0)
    for split in ("train", "heldout"):
        for one in made.read(split):
            empty[one.source] += not one.messages[-1]["content"].strip()
    assert list(empty.values()) == [28, 11]


def test_a_list_of_alpaca_and_messages_with_more_beside_them(tmp_path):
    made = chats(
        tmp_path, "llamafactory/alpaca_zh_demo.json", "fbbench_scored_responses_zh.jsonl.gz"
    )
    formats = [source["formats"] for source in made.facts["sources"]]
    assert formats == [{"alpaca": 1000}, {"messages": 657}]
    assert "checklist" in made.facts["sources"][1]["ignored"]


@pytest.mark.parametrize(
    "name", ["llamafactory/dpo_en_demo.json", "hh_rlhf/harmless_base_test.jsonl.gz"]
)
def test_rows_to_be_compared_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="answers to be compared"):
        chats(tmp_path, name)


def test_of_kto_only_what_is_wanted_is_kept(tmp_path):
    name = "llamafactory/kto_en_demo.json"
    with pytest.raises(DataError, match="`label` is false"):
        chats(tmp_path, name)
    made = chats(tmp_path, name, malformed="skip")
    assert made.facts["sources"][0]["skipped"] == {"label_false": 150}
    assert made.facts["train"] + made.facts["heldout"] == 150
