"""Chats on disk: the same bytes every time, split by what is said, read from anywhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2.data.chats import chats as module
from bc2.data.chats.chats import Chats
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.make_chats import make_chats
from bc2.errors import DataError


def digest(said: list[dict[str, str]]) -> str:
    """As the documentation says it, without the code."""
    pairs = [[one["role"], one["content"]] for one in said]
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def row(number: int) -> dict[str, Any]:
    return {"instruction": f"What is {number}?", "output": f"{number} 是数字 🙂" * (number % 9)}


def said(number: int) -> list[dict[str, str]]:
    one = row(number)
    return [
        {"role": "user", "content": one["instruction"]},
        {"role": "assistant", "content": one["output"]},
    ]


def make(folder: Path, sizes: dict[str, int], **more: Any) -> Path:
    for number, (name, size) in enumerate(sizes.items()):
        rows = [row(1000 * number + each) for each in range(size)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    sources = tuple(
        ChatSourceConfig(name=name, path=str(folder / f"{name}.jsonl"), times=2.0 if n else 1.0)
        for n, name in enumerate(sizes)
    )
    out = folder / "out"
    out.mkdir(exist_ok=True)
    make_chats(ChatsConfig(**{"sources": sources, "heldout_fraction": 0.2, **more}), out)
    return out


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", 7)
    monkeypatch.setattr(module, "_KEPT", 2)


def test_what_is_held_out_is_decided_by_what_is_said(tmp_path, small_groups):
    chats = Chats.open(make(tmp_path, {"a": 60, "b": 40}))
    numbers = [*range(60), *range(1000, 1040)]
    below = {number: int(digest(said(number))[:16], 16) < 0.2 * 2**64 for number in numbers}
    for split, wanted in (("train", False), ("heldout", True)):
        expected = [said(number) for number in numbers if below[number] is wanted]
        assert [list(one.messages) for one in chats.read(split)] == expected
        assert chats.count(split) == len(expected)
    assert 8 < chats.count("heldout") < 35
    assert chats.facts["train"] + chats.facts["heldout"] == 100


def test_reading_begins_and_ends_anywhere(tmp_path, small_groups):
    chats = Chats.open(make(tmp_path, {"a": 60, "b": 40}, heldout_fraction=0.0))
    rows = list(chats.read("train"))
    assert len(rows) == 100
    assert rows[61] == Conversation(tuple(said(1001)), "b", "b.jsonl", 2)
    for start, stop in [(0, 1), (6, 7), (6, 8), (7, 14), (13, 99), (50, None), (99, 200), (100, 9)]:
        assert list(chats.read("train", start, stop)) == rows[start:stop]
    order = np.random.default_rng(1).permutation(100)
    assert [chats.at("train", int(index)) for index in order] == [rows[index] for index in order]
    assert list(chats.read("heldout")) == []
    for index in (-1, 100):
        with pytest.raises(IndexError, match="train has 100 conversations"):
            chats.at("train", index)


def test_sources_by_number(tmp_path, small_groups):
    chats = Chats.open(make(tmp_path, {"b": 30, "a": 20}, heldout_fraction=0.0))
    assert chats.sources == ("b", "a")
    assert chats.times == (1.0, 2.0)
    ids = chats.source_ids("train")
    assert ids.dtype == np.int64
    assert ids.tolist() == [0] * 30 + [1] * 20
    assert chats.source_ids("heldout").tolist() == []


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first = {p.name: p.read_bytes() for p in make(tmp_path, {"a": 50}).iterdir()}
    again = {p.name: p.read_bytes() for p in make(tmp_path, {"a": 50}).iterdir()}
    assert first == again
    assert sorted(first) == ["chats.json", "heldout.parquet", "train.parquet"]


def test_marks_of_messages_come_back(tmp_path):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "train": False, "weight": 0.5},
    ]
    (tmp_path / "m.jsonl").write_text(json.dumps({"messages": messages}))
    source = ChatSourceConfig(name="m", path=str(tmp_path / "m.jsonl"))
    make_chats(ChatsConfig(sources=(source,), heldout_fraction=0.0), tmp_path)
    assert list(Chats.open(tmp_path).at("train", 0).messages) == messages


def test_facts_say_what_was_read(tmp_path, capsys):
    (tmp_path / "m.jsonl").write_text(json.dumps({**row(1), "id": 3}) + "\n[]\n")
    source = ChatSourceConfig(
        name="m", path=str(tmp_path / "m.jsonl"), licence="CC0", lang="en", times=0.5
    )
    config = ChatsConfig(
        sources=(source,), heldout_fraction=0.0, malformed="skip", max_malformed=0.5
    )
    facts = make_chats(config, tmp_path)
    assert facts == {
        "train": 1, "heldout": 0, "sources": {"m": 1}, "formats": {"m": {"alpaca": 1}},
        "skipped": {"m": {"not_an_object": 1}}, "licences": {"m": "CC0"},
    }  # fmt: skip
    (entry,) = Chats.open(tmp_path).facts["sources"]
    assert entry == {
        "name": "m", "times": 0.5, "lang": "en", "licence": "CC0", "made": False, "rows": 1,
        "heldout": 0, "formats": {"alpaca": 1}, "ignored": {"id": 1},
        "skipped": {"not_an_object": 1}, "skipped_rows": ["m.jsonl:2 not_an_object"],
    }  # fmt: skip
    told = capsys.readouterr().err
    assert "source m: 1 conversations (alpaca: 1)" in told
    assert "source m: not read: id" in told
    assert "source m: skipped rows: not_an_object: 1; the first is m.jsonl:2" in told


@pytest.mark.parametrize(
    ("fraction", "why"),
    [(1e-9, "no conversation is held out"), (1 - 1e-9, "all conversations are held out")],
)
def test_a_split_that_is_empty_unasked_is_an_error(tmp_path, fraction, why):
    with pytest.raises(DataError, match=why):
        make(tmp_path, {"a": 3}, heldout_fraction=fraction)


@pytest.mark.parametrize("facts", [None, "[]", "{", '{"sources": [{"name": "a"}]}'])
def test_what_is_no_chats_is_an_error(tmp_path, facts):
    if facts is not None:
        (tmp_path / "chats.json").write_text(facts)
    with pytest.raises(DataError, match="these are no chats"):
        Chats.open(tmp_path)


def test_a_split_that_is_cut_is_an_error(tmp_path):
    out = make(tmp_path, {"a": 50})
    path = out / "train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged or cut short"):
        Chats.open(out).count("train")
