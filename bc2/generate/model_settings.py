"""What a model's answers are sampled with, and end at: what is asked, then the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bc2.errors import DataError

if TYPE_CHECKING:
    from bc2.generate.generation_defaults import GenerationDefaults
    from bc2.registry import Artifact
    from bc2.tokenizer.chat import Chat
    from bc2.tokenizer.tokenizer import Tokenizer

#: Where neither a person nor the model says otherwise.
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 128, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "repetition_penalty": 1.0,
}  # fmt: skip

#: How the released models of a chat layout are sampled: Baichuan 2's generation_config.json.
OF_LAYOUT: dict[str, dict[str, Any]] = {
    "baichuan": {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05},
}

#: The most tokens of an answer in a chat, where nobody says otherwise: Baichuan 2's, and never more
#: than half of the window.
LONGEST_ANSWER = 2048


def own_end_ids(
    tokenizer: Tokenizer, chat: Chat | None, own: GenerationDefaults, artifact: Artifact
) -> tuple[int, ...]:
    """The tokens that end an answer of a model; a tokenizer may have no end of text (-1).

    Args:
        chat: its layout, where answers are turns of a conversation.
        own: its settings.

    Raises:
        DataError: its settings name a token that its tokenizer has not got.
    """
    wrong = next((i for i in own.end_ids if not 0 <= i < tokenizer.vocab_size), None)
    if wrong is not None:
        from bc2.generate.generation_defaults import GENERATION_FILE  # needs pydantic

        raise DataError(
            f"the model's answers end at token {wrong}, and its tokenizer has "
            f"{tokenizer.vocab_size:,} pieces",
            where=str(artifact.path / GENERATION_FILE),
            todo="import the model again with the tokenizer that it was trained with",
        )
    ends = [] if tokenizer.eos_id < 0 else [tokenizer.eos_id]
    return tuple(dict.fromkeys([*ends, *(chat.end_ids if chat else ()), *own.end_ids]))


def own_settings(own: GenerationDefaults, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a model, for `SamplingConfig`, that nobody has `given` otherwise."""
    return {name: value for name, value in own.sampling().items() if name not in given}


def turn_settings(own: GenerationDefaults, chat: Chat) -> dict[str, Any]:
    """How a model's turns are sampled, for `SamplingConfig`: as it says itself.

    Where it says nothing of how tokens are drawn, as its layout's released models are.
    """
    said = own.sampling()
    drawn = said.keys() - {"max_new_tokens"}
    return {**({} if drawn else OF_LAYOUT.get(chat.name, {})), **said}


def chat_settings(own: GenerationDefaults, chat: Chat, window: int) -> dict[str, Any]:
    """All settings of a chat: `turn_settings`, and `DEFAULTS` for the rest.

    Args:
        window: tokens of the model's context.
    """
    longest = max(1, min(LONGEST_ANSWER, window // 2))
    found = {**DEFAULTS, "max_new_tokens": longest, **turn_settings(own, chat)}
    # Many models say their whole window, which would leave nothing to the conversation.
    return found if found["max_new_tokens"] < window else {**found, "max_new_tokens": longest}


def told(taken: Mapping[str, Any], own: GenerationDefaults, ends: tuple[int, ...]) -> str:
    """A model's own settings that are used, in words; "" if there are none."""
    said = [f"{name} {value:g}" for name, value in taken.items()]
    more = [str(token) for token in own.end_ids if token in ends]
    return ", ".join([*said, *([f"end_ids {' '.join(more)}"] if more else [])])
