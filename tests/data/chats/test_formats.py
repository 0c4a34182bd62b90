"""Rows of every form as messages; what would be lost without a word is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.formats import Format, read_row, recognise, unread_keys


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def shared(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for who, text in pairs]


ASKED = [said("user", "hi"), said("assistant", "ho")]

READ: list[tuple[Format, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", {"messages": ASKED}, ASKED),
    ("messages", {"conversations": ASKED, "prompt": "hi", "prompt_id": 3}, ASKED),
    ("messages", {"messages": ASKED, "system": "be"}, [said("system", "be"), *ASKED]),
    ("messages", {"messages": [said("system", "be"), *ASKED], "system": "be"},
     [said("system", "be"), *ASKED]),
    ("messages", {"messages": [said("user", [{"type": "text", "text": "h"},
                                             {"type": "text", "text": "i"}]), ASKED[1]]}, ASKED),
    ("messages", {"messages": [said("user", []), said("assistant", "")]},
     [said("user", ""), said("assistant", "")]),
    # What lint is for: an order that nobody speaks in.
    ("messages", {"messages": [*ASKED[::-1], said("system", "late"), ASKED[1], ASKED[1]]},
     [*ASKED[::-1], said("system", "late"), ASKED[1], ASKED[1]]),
    ("messages", {"messages": [said("user", "hi", train=True, weight=None, name="x"),
                               said("assistant", "ho", train=False, weight=2)]},
     [said("user", "hi", train=True), said("assistant", "ho", train=False, weight=2.0)]),
    ("messages", {"messages": ASKED, "label": True, "tools": [], "images": None}, ASKED),
    ("sharegpt", {"conversations": shared(("human", "hi"), ("gpt", "ho"))}, ASKED),
    ("sharegpt", {"conversation": shared(("user", "hi"), ("assistant", "ho")), "system": ""},
     ASKED),
    ("sharegpt", {"messages": shared(("system", "be"), ("human", "hi"), ("gpt", "ho"))},
     [said("system", "be"), *ASKED]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "hi", "loss": None},
                                    {"from": "gpt", "value": "ho", "loss": True}]}, ASKED),
    ("alpaca", {"instruction": "hi", "input": "", "output": "ho"}, ASKED),
    ("alpaca", {"instruction": "hi", "input": None, "output": "ho"}, ASKED),
    ("alpaca", {"instruction": "hi", "output": "ho"}, ASKED),
    ("alpaca", {"instruction": "", "input": "hi", "output": "ho"}, ASKED),
    ("alpaca", {"instruction": "Add", "input": "1\n2", "output": ""},
     [said("user", "Add\n1\n2"), said("assistant", "")]),
    ("alpaca", {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
     [said("system", "s"), said("user", "a"), said("assistant", "b"), said("user", "c"),
      said("assistant", "d")]),
    ("prompt_completion", {"prompt": "hi", "completion": "ho"}, ASKED),
    ("prompt_completion", {"prompt": "hi", "response": "ho", "system": "s"},
     [said("system", "s"), *ASKED]),
    ("prompt_completion", {"prompt": [*ASKED, ASKED[0]], "completion": [ASKED[1]]},
     [ASKED[0], said("assistant", "ho", train=False), *ASKED]),
    ("prompt_completion", {"prompt": [said("assistant", "ho", train=True)], "completion": "x"},
     [said("assistant", "ho", train=True), said("assistant", "x")]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "row", "messages"), READ)
def test_a_row_is_recognised_and_read(form, row, messages):
    assert recognise(row) == form
    assert read_row(row, form) == messages


def of(**more: Any) -> dict[str, Any]:
    return {"messages": [ASKED[0], {**ASKED[1], **more}]}


BAD: list[tuple[Any, str, str]] = [
    ([1], "not_an_object", "the row is a JSON list"),
    ({}, "no_format", "no format of chats: none"),
    ({"text": "a", "instruction": "b", "output": None}, "no_format", "chats: text, instruction"),
    ({"messages": "[]"}, "bad_message", "`messages` is a str, not a list"),
    ({"messages": []}, "no_messages", "`messages` holds no messages"),
    ({"conversations": []}, "no_messages", "`conversations` holds no messages"),
    ({"prompt": [], "completion": []}, "no_messages", "the row holds no messages"),
    ({"messages": ASKED, "instruction": "a", "output": "b"}, "several_formats", "and of alpaca"),
    ({"messages": ASKED, "conversations": ASKED}, "several_formats", "more than one of messages"),
    ({"prompt": "a", "completion": "b", "response": "c"}, "no_format", "one of completion"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "(chosen, rejected)"),
    ({"messages": ASKED, "rejected": ASKED}, "preference", "(rejected)"),
    ({"messages": ASKED, "label": False}, "label_false", "not wanted"),
    ({"messages": ["hi"]}, "bad_message", "`messages[0]` is a str, not an object"),
    ({"messages": [{"role": "user"}]}, "bad_message", "no `role` and `content`; its keys: role"),
    ({"messages": [ASKED[0], *shared(("gpt", "b"))]}, "bad_message", "its keys: from, value"),
    ({"conversations": [*shared(("gpt", "b")), ASKED[0]]}, "bad_message", "no `from` and `value`"),
    ({"messages": [said("User", "a")]}, "unknown_role", "unknown role 'User'; there are system"),
    ({"messages": [said(["user"], "a")]}, "unknown_role", "unknown role ['user']"),
    ({"messages": [said("tool", "a")]}, "unknown_role", "no place for tools"),
    ({"conversations": shared(("human", "a"), ("bing", "b"))}, "unknown_role", "'bing'"),
    ({"conversations": shared(("function_call", "b"))}, "unknown_role", "no place for tools"),
    ({"conversations": shared(("observation", "b"))}, "unknown_role", "no place for tools"),
    (of(content=None), "no_text", "`messages[1]` `content` is null"),
    (of(content=3), "text_not_string", "`messages[1]` `content` is a int"),
    (of(content="a\ud800"), "lone_surrogate", "half a surrogate pair at character 1"),
    (of(content=[{"type": "image_url"}]), "no_place", "a part that is no text: image_url"),
    (of(content=["a"]), "no_place", "a part that is no text: str"),
    (of(content=[{"type": "text", "text": 1}]), "text_not_string", "`text` is a int"),
    (of(tool_calls=[{"id": 1}]), "no_place", "`messages[1]` has `tool_calls`"),
    (of(reasoning_content="hm"), "no_place", "has `reasoning_content`"),
    (of(train="no"), "bad_mark", "`messages[1]` `train` is 'no'"),
    (of(weight=0), "bad_mark", "`weight` is 0, and not a number from 1e-06 to 1e+06"),
    # Of these fp32 would make 0 and infinity, and Python no number at all.
    (of(weight=1e-60), "bad_mark", "`weight` is 1e-60"),
    (of(weight=1e300), "bad_mark", "`weight` is 1e+300"),
    (of(weight=10**400), "bad_mark", "`weight` is 1000"),
    (of(weight=float("nan")), "bad_mark", "`weight` is nan"),
    (of(weight=True), "bad_mark", "`weight` is True"),
    (of(weight=float("inf")), "bad_mark", "`weight` is inf"),
    (of(loss=False), "bad_mark", "`messages[1]` has `loss`, which is not read"),
    (of(train_detail=[]), "bad_mark", "`train_detail`"),
    ({"messages": ASKED, "weight": 2.0}, "bad_mark", "`weight` of a whole row"),
    ({"messages": ASKED, "train": False}, "bad_mark", "`train` of a whole row"),
    ({"messages": ASKED, "tools": [{"name": "f"}]}, "no_place", "`tools`"),
    ({"messages": ASKED, "images": ["a.png"]}, "no_place", "`images`"),
    ({"messages": [said("system", "a"), *ASKED], "system": "b"}, "bad_message", "differs"),
    ({"messages": ASKED, "system": ["b"]}, "text_not_string", "`system` is a list"),
    ({"instruction": 1, "output": "b"}, "text_not_string", "`instruction` is a int"),
    ({"instruction": "a", "output": "b", "history": "c"}, "bad_message", "`history` is a str"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "bad_message", "[question, answer]"),
    ({"instruction": "a", "output": "b", "history": [["c", None]]}, "no_text", "history answer"),
    ({"prompt": {"a": 1}, "completion": "b"}, "text_not_string", "`prompt` is a dict"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "why"), BAD)
def test_a_bad_row_says_what_is_wrong_with_it(row, reason, why):
    with pytest.raises(BadChat) as caught:
        read_row(row, recognise(row))
    assert caught.value.reason == reason
    assert why in caught.value.detail


def test_a_stated_format_reads_rows_of_several():
    row = {"prompt": "a", "messages": ASKED, "chosen": ASKED, "completion": "b", "rejected": ASKED}
    assert read_row(row, "messages") == ASKED
    assert read_row(row, "prompt_completion") == [said("user", "a"), said("assistant", "b")]
    assert list(unread_keys(row, "messages")) == ["prompt", "chosen", "completion", "rejected"]


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("messages", "no list of messages"),
        ("sharegpt", "no list of messages"),
        ("alpaca", "`instruction` is missing"),
        ("prompt_completion", "not a `prompt` and one of completion, response"),
    ],
)
def test_a_row_without_the_keys_of_its_stated_format(form, why):
    with pytest.raises(BadChat) as caught:
        read_row({"text": "a"}, form)
    assert why in caught.value.detail


def test_keys_that_are_not_read_are_named():
    row = {
        "id": 7, "empty": None, "system": "s",
        "messages": [said("user", "a", name="x", date=None, weight=1), said("assistant", "b", n=0)],
    }  # fmt: skip
    assert list(unread_keys(row, "messages")) == ["id", "messages[].name", "messages[].n"]
    row = {"instruction": "a", "output": "b", "history": [["c", "d"]], "kind": "x"}
    assert list(unread_keys(row, "alpaca")) == ["kind"]
    # Not a mark of an unwanted answer, so perhaps a class.
    assert list(unread_keys({**row, "label": 0}, "alpaca")) == ["kind", "label"]
    assert list(unread_keys({**row, "label": True}, "alpaca")) == ["kind"]
