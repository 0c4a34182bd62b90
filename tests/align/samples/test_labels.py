"""Labels against a naive implementation without bc2's layouts: strings in, labels out.

It takes the original libraries' tokenizers, cuts a conversation into control ids and text by hand,
and labels each by the character that it came from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
import tokenizers
from made_json_tokenizers import llama3_like, qwen_like

from bc2.align.samples.sample import sample_of
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

PIECES = [
    "Hello", " world", "你好，", "世界。", "\n", "  ", "👩‍👩‍👧‍👦", "🇨🇳", "<reserved_106>",
    "<reserved_107>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>", "assistant", "12", "é",
    "def f(x):\n\treturn x", "<s>", "?",
]  # fmt: skip

#: Encodes text to (id, first character, end) triples.
Encode = Callable[[str], list[tuple[int, int, int]]]


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Any roles after an optional system message; empty turns, marks of training and weights."""

    def said() -> str:
        return "".join(rng.choices(PIECES, k=rng.randint(0, 5)))

    messages: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": said()})
    for _ in range(rng.randint(1, 3)):
        messages += [{"role": "user", "content": said()}, {"role": "assistant", "content": said()}]
    if rng.random() < 0.2:
        messages.append({"role": "user", "content": said()})
    for message in messages:
        if message["role"] == "assistant" and rng.random() < 0.2:
            message["train"] = False
        if rng.random() < 0.2:
            message["weight"] = rng.choice([0.25, 2.0])
    return messages


def learns(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("train", True)


def naive_baichuan(
    messages: list[dict[str, Any]], encode: Encode, ids: dict[str, int]
) -> list[tuple[int, int, float]]:
    """(id, label at its place, weight): EOS is learnt where the next turn's marker stands."""
    out: list[tuple[int, int, float]] = []
    previous: dict[str, Any] | None = None
    for message in messages:
        if message["role"] != "system":
            ended = previous is not None and learns(previous)
            mark = ids["user"] if message["role"] == "user" else ids["assistant"]
            weight = previous.get("weight", 1.0) if previous and ended else 1.0
            out.append((mark, ids["eos"] if ended else -100, weight))
        for token, _, _ in encode(message["content"]):
            label = token if learns(message) else -100
            out.append((token, label, message.get("weight", 1.0) if learns(message) else 1.0))
        previous = message
    if previous is not None and previous["role"] == "assistant":
        label = ids["eos"] if learns(previous) else -100
        out.append((ids["eos"], label, previous.get("weight", 1.0)))
    return out


def naive_turns(
    messages: list[dict[str, Any]], encode: Encode, ids: dict[str, int], llama: bool
) -> list[tuple[int, int, float]]:
    """ChatML's or Llama 3's turns: what is between two control tokens is encoded as one text."""
    out: list[tuple[int, int, float]] = [(ids["begin"], -100, 1.0)] if llama else []

    def text(written: str, first: int, learnt: bool, weight: float) -> None:
        for token, start, end in encode(written):
            label = token if learnt and start >= first and end > start else -100
            out.append((token, label, weight))

    for number, message in enumerate(messages):
        content = message["content"].strip() if llama else message["content"]
        learnt, weight = learns(message), message.get("weight", 1.0)
        if llama:
            out.append((ids["start"], -100, 1.0))
            text(message["role"], 0, False, 1.0)
            out.append((ids["close"], -100, 1.0))
            text("\n\n" + content, 2, learnt, weight)
        else:
            if number:
                text("\n", 0, False, 1.0)
            out.append((ids["start"], -100, 1.0))
            heading = message["role"] + "\n"
            text(heading + content, len(heading), learnt, weight)
        out.append((ids["end"], ids["end"] if learnt else -100, weight))
    if not llama:
        text("\n", 0, False, 1.0)
    return out


def original_json(model: bytes) -> tuple[tokenizers.Tokenizer, Encode]:
    original = tokenizers.Tokenizer.from_str(model.decode())
    original.encode_special_tokens = True

    def encode(text: str) -> list[tuple[int, int, int]]:
        found = original.encode(text, add_special_tokens=False)
        return [(i, *span) for i, span in zip(found.ids, found.offsets, strict=True)]

    return original, encode


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    return train(
        ["Hello world. 你好，世界。 def f(x): return x\n"] * 300, TokenizerConfig(vocab_size=512)
    ).model


def case(layout: str, model: bytes) -> tuple[Encode, Callable[..., list[tuple[int, int, float]]]]:
    if layout == "baichuan":
        original = sentencepiece.SentencePieceProcessor(model_proto=model)
        names = {"user": 195, "assistant": 196, "eos": original.eos_id()}
        return (
            lambda text: [(i, 0, 1) for i in original.encode(text)],
            lambda messages, encode: naive_baichuan(messages, encode, names),
        )
    known, encode = original_json(model)
    names = {
        "chatml": ("<|im_start|>", "<|im_end|>"),
        "llama3": ("<|start_header_id|>", "<|eot_id|>"),
    }
    start, end = names[layout]
    ids = {"start": known.token_to_id(start), "end": known.token_to_id(end)}
    if layout == "llama3":
        ids |= {
            "begin": known.token_to_id("<|begin_of_text|>"),
            "close": known.token_to_id("<|end_header_id|>"),
        }
    return encode, lambda messages, encode: naive_turns(messages, encode, ids, layout == "llama3")


@pytest.mark.parametrize("layout", ["baichuan", "chatml", "llama3"])
def test_labels_are_those_of_a_naive_implementation(
    layout: str, sentencepiece_model: bytes
) -> None:
    model = {"baichuan": sentencepiece_model, "chatml": qwen_like(), "llama3": llama3_like()}[
        layout
    ]
    chat = chat_named(layout, Tokenizer.from_bytes(model))
    encode, naive = case(layout, model)
    rng = random.Random(layout)
    for _ in range(700):
        messages = conversation(rng)
        expected = naive(messages, encode)
        rendered = chat.render(messages)
        assert rendered.ids == [one[0] for one in expected], messages
        assert rendered.labels == [one[1] for one in expected], messages
        learnt = [place for place, label in enumerate(rendered.labels) if label != -100]
        assert [rendered.weights[at] for at in learnt] == [expected[at][2] for at in learnt]
        sample = sample_of(rendered)
        assert sample.labels.tolist() == rendered.labels[1 : len(sample.labels) + 1]
        assert sample.tokens.tolist() == rendered.ids[: len(sample.tokens)]
        assert sample.trained == len([at for at in learnt if at])
        assert {label != -100 for label in sample.labels[-1:]} <= {bool(sample.trained)}
