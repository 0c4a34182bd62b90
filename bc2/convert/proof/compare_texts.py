"""Whether a program reads texts and conversations as the tokens that ours reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from bc2.convert.exporting.target import ConsumerName
from bc2.convert.proof.consumer import Consumer, Said
from bc2.convert.proof.hard_texts import CONVERSATIONS
from bc2.errors import DataError
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.tokenizer import Tokenizer

#: Differences that are known and not wrong, with what to know of each.
CONTROL = "control pieces in a text become control tokens there, and never here"
REFUSED = "lone surrogates (broken UTF-8) are refused there, and are bytes here"
REPLACED = "lone surrogates (broken UTF-8) become U+FFFD there, and are bytes here"
NORMALISED = "what the tokenizer replaces or drops (Unicode's forms) is kept there"
PREFIXED = "a space is put before a text there, and here only before one that begins with none"
ADDED = "tokens that are found in any text here are spelt out in a text there"
MARK = "U+2581 in a text is a space there, and itself here"

#: Strings that are sent at once.
_AT_ONCE = 1000


def compare_texts(
    tokenizer: Tokenizer, consumer: Consumer, texts: Sequence[str], program: ConsumerName
) -> tuple[dict[str, Any], list[str]]:
    """The ids of texts there and here: counts of differences by class, and what is wrong."""
    known: Counter[str] = Counter()
    examples: dict[str, str] = {}
    problems: list[str] = []
    count = 0
    for first in range(0, len(texts), _AT_ONCE):
        some = texts[first : first + _AT_ONCE]
        found = zip(some, tokenizer.encode_batch(some), consumer.encode(some), strict=True)
        for text, ours, theirs in found:
            if ours == theirs:
                count += 1
                continue
            kind = difference(tokenizer, text, theirs, program)
            if kind is None:
                problems.append(f"{_shown(text)} is {theirs} there, and {ours} here")
            else:
                known[kind] += 1
                examples.setdefault(kind, _shown(text))
    facts = {
        "strings": len(texts),
        "same": count,
        "known_differences": [
            {"what": kind, "strings": number, "example": examples[kind]}
            for kind, number in known.most_common()
        ],
    }
    if not problems:
        return facts, []
    return facts, [f"the tokens of {len(problems):,} of {len(texts):,} strings: {problems[0]}"]


def difference(
    tokenizer: Tokenizer, text: str, theirs: Sequence[int] | None, program: ConsumerName
) -> str | None:
    """The class of a difference that is known of a program, or None.

    A class is what the text holds, and, where that can be seen, what came of it.
    """
    control = {*tokenizer.special_ids.values(), *tokenizer.added_ids.values()}
    broken = any("\ud800" <= one <= "\udfff" for one in text)
    if theirs is None:
        return REFUSED if broken else None
    if any(name in text for name in _names(tokenizer)) and not control.isdisjoint(theirs):
        return CONTROL  # no text of ours is ever one
    if broken and "\ufffd" in tokenizer.generated_bytes(theirs).decode("utf-8", "replace"):
        return REPLACED
    return _of_llama_cpp(tokenizer, text, theirs) if program == "llama.cpp" else None


def _of_llama_cpp(tokenizer: Tokenizer, text: str, theirs: Sequence[int]) -> str | None:
    """It keeps all of a text, and what it keeps can be read in what it says."""
    plain = text.replace("\u2581", " ")
    ours = tokenizer.encode(text)
    if list(theirs) == tokenizer.encode(plain):
        return MARK
    kept = tokenizer.generated_bytes(theirs).decode("utf-8", "replace")
    here = tokenizer.generated_bytes(ours).decode("utf-8", "replace")
    if kept == text and any(name in text for name in tokenizer.added_ids):
        return ADDED
    if kept == f" {plain}" and plain.startswith(" ") and here == plain:
        return PREFIXED
    if kept in (text, plain, f" {plain}") and here not in (text, plain, f" {plain}"):
        return NORMALISED
    return None


def _names(tokenizer: Tokenizer) -> Collection[str]:
    return [name for name in (*tokenizer.special_ids, *tokenizer.added_ids) if name]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "…")


def compare_chat(chat: Chat | None, consumer: Consumer) -> tuple[dict[str, Any], list[str]]:
    """Conversations that the layout has a place for, those to be answered with their prompt."""
    if chat is None:
        return {"conversations": 0}, []
    count = 0
    for messages in CONVERSATIONS:
        answered = messages[-1]["role"] == "user"
        ours = _rendered(chat, messages, answered)
        if ours is None:
            continue
        theirs = consumer.chat(messages, generation_prompt=answered)
        if theirs is None:
            return {}, [f"it has no chat template, and the model has the layout {chat.name}"]
        if ours != theirs:
            at = next(
                (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            there, here = (ids[at : at + 4] or "the end" for ids in (theirs, ours))
            return {}, [
                f"the conversation {_shown(messages[0]['content'])} is other tokens from the "
                f"{at + 1}. on: {there} there, and {here} here"
            ]
        count += 1
    return {"conversations": count, "layout": chat.name}, []


def _rendered(chat: Chat, messages: Sequence[Said], answered: bool) -> list[int] | None:
    try:
        return chat.render(messages, generation_prompt=answered).ids
    except DataError:  # some templates have no place for a system's message
        return None
