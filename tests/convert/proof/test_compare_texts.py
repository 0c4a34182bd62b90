"""Strings and conversations that a program reads otherwise: known differences, and mismatches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import made_json_tokenizers
import pytest
from made_export import Held

from bc2.convert.proof.compare_texts import (
    ADDED,
    CONTROL,
    MARK,
    NORMALISED,
    PREFIXED,
    REFUSED,
    REPLACED,
    compare_chat,
    compare_texts,
    difference,
)  # fmt: skip
from bc2.convert.proof.consumer import Said
from bc2.convert.proof.hard_texts import CONVERSATIONS, strings
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.tokenizer import Tokenizer

HeldModel = Callable[[str], Held]


class Reader:
    """Ours, but for what a test has changed."""

    name, version = "reader", "1"

    def __init__(self, tokenizer: Tokenizer, chat: Chat | None = None):
        self.tokenizer = tokenizer
        self.layout = chat
        self.changed: dict[str, list[int] | None] = {}
        self.ending: list[int] = []

    def log_probs(self, ids: Sequence[int]) -> None:
        raise AssertionError("nobody asks for numbers here")

    greedy = log_probs

    def encode(self, texts: Sequence[str]) -> list[list[int] | None]:
        return [self.changed.get(text, self.tokenizer.encode(text)) for text in texts]

    def chat(self, messages: Sequence[Said], *, generation_prompt: bool) -> list[int] | None:
        if self.layout is None:
            return None
        found = self.layout.render(messages, generation_prompt=generation_prompt).ids
        return [*found, *self.ending]


@pytest.fixture
def reader(held: HeldModel) -> Reader:
    source = held("baichuan2-7b").source
    return Reader(source.tokenizer, source.chat)


def test_the_strings_are_many_and_always_the_same() -> None:
    texts = ["Some text of a corpus.\n", "一段文字"]
    found = strings(texts, ["<s>", "</s>"], 10_000, 7)
    assert found == strings(texts, ["<s>", "</s>"], 10_000, 7)
    assert len(found) == 10_000
    assert found != strings(texts, ["<s>", "</s>"], 10_000, 8)
    for part in ("\u2581", "\udc80", "\x00", "</s>", "  ", "\r\n", "e\u0301", "\U0001f600"):
        assert sum(part in one for one in found) > 5
    assert sum(one in "".join(texts) for one in found) > 7000


def test_what_is_the_same(reader: Reader) -> None:
    facts, problems = compare_texts(reader.tokenizer, reader, ["a", "b  c", "\udc80"], "llama.cpp")
    assert (facts["same"], facts["known_differences"], problems) == (3, [], [])


@pytest.mark.parametrize(
    ("text", "theirs", "program", "kind"),
    [
        ("ab\udc80", None, "transformers", REFUSED),
        ("ab", None, "transformers", None),
        ("a</s>b", "control", "transformers", CONTROL),
        ("a</s>b", "other", "transformers", None),
        ("ab", "control", "transformers", None),
        ("a\u2581b", "space", "llama.cpp", MARK),
        ("a\u2581b", "space", "transformers", None),
        ("a\u2581b", "other", "llama.cpp", None),
        ("a  b", "other", "llama.cpp", None),
        ("a b", "other", "llama.cpp", None),
        ("a\ud800", "replaced", "llama.cpp", REPLACED),
    ],
)
def test_differences(
    reader: Reader, text: str, theirs: str | None, program: str, kind: str | None
) -> None:
    ids = {
        "control": [2], "other": reader.tokenizer.encode("other"),
        "space": reader.tokenizer.encode("a b"), "replaced": reader.tokenizer.encode("a\ufffd"),
    }  # fmt: skip
    reader.changed[text] = ids[theirs] if theirs else None
    facts, problems = compare_texts(reader.tokenizer, reader, ["x", text], program)  # type: ignore[arg-type]
    if kind is None:
        assert problems[0].startswith(f"the tokens of 1 of 2 strings: {text!r} is ")
    else:
        assert problems == []
        example = repr(text)
        assert facts["known_differences"] == [{"what": kind, "strings": 1, "example": example}]
    assert facts["same"] == 1


def test_a_space_before_every_text() -> None:
    """Of a tokenizer that puts one only before texts that begin with none, as llama2.c's does."""
    spec = json.loads(made_json_tokenizers.llama2_like())
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False,
    }  # fmt: skip
    tokenizer = Tokenizer(json.dumps(spec).encode())
    assert tokenizer.encode(" a") == tokenizer.encode("a")
    theirs = tokenizer.encode("  a")
    assert difference(tokenizer, " a", theirs, "llama.cpp") == PREFIXED
    assert difference(tokenizer, " a", theirs, "transformers") is None
    assert difference(tokenizer, "a", theirs, "llama.cpp") is None


@pytest.mark.parametrize(
    ("text", "theirs", "kind"),
    [
        ("a<|fim_prefix|>b", "<|fim_prefix|>", ADDED),
        ("a<|fim_prefix|>b", "<|fim_suffix|>", None),
        ("e\u0301", "e\u0301", NORMALISED),
        ("e", "e\u0301", None),
    ],
)
def test_what_llama_cpp_does_not_do(
    held: HeldModel, text: str, theirs: str, kind: str | None
) -> None:
    """A tokenizer with NFC, and tokens that any text may hold: there they are spelt out."""
    tokenizer = held("qwen3").source.tokenizer
    spelt = text.replace("<|fim_prefix|>", theirs) if "<" in text else theirs
    ids = [i for byte in spelt for i in _bytewise(tokenizer, byte)]
    found = difference(tokenizer, text, ids, "llama.cpp")
    assert found == kind
    assert difference(tokenizer, text, ids, "transformers") is None


def _bytewise(tokenizer: Tokenizer, character: str) -> list[int]:
    """A character's bytes, each as its own token, whatever is made of the character here."""
    table = {tokenizer.generated_bytes([i]): i for i in reversed(range(tokenizer.vocab_size))}
    return [table[bytes([byte])] for byte in character.encode()]


def test_conversations(reader: Reader) -> None:
    facts, problems = compare_chat(reader.layout, reader)
    assert problems == []
    assert facts == {"conversations": len(CONVERSATIONS), "layout": "baichuan"}
    reader.ending = [2]
    (said,) = compare_chat(reader.layout, reader)[1]
    assert "is other tokens from the" in said
    assert "[2] there, and the end here" in said
    there = Reader(reader.tokenizer, None)
    (said,) = compare_chat(reader.layout, there)[1]
    assert said == "it has no chat template, and the model has the layout baichuan"
    assert compare_chat(None, there) == ({"conversations": 0}, [])


def test_a_conversation_that_a_layout_has_no_place_for(held: HeldModel) -> None:
    source = held("mistral").source  # whose template refuses a system's message
    facts, problems = compare_chat(source.chat, Reader(source.tokenizer, source.chat))
    assert (facts["conversations"], problems) == (8, [])
