r"""Dialogues as one text, "\n\nHuman: … \n\nAssistant: …", as hh-rlhf has them."""

from __future__ import annotations

import re

from bc2.data.chats.bad_chat import BadChat
from bc2.data.chats.row_messages import Messages
from bc2.tokenizer.chat import Message

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: object) -> bool:
    """Whether a text begins with a turn."""
    return isinstance(text, str) and _TURN.match("\n\n" + text.lstrip()) is not None


def dialogue_messages(text: str, where: str) -> Messages:
    """The turns of a dialogue as messages, without the blanks around them.

    Turns of one speaker one after another are one message, whose paragraphs they are.

    Raises:
        BadChat: something stands before the first turn.
    """
    before, *turns = _TURN.split("\n\n" + text.lstrip())
    if before or not turns:
        raise BadChat(
            "bad_message", f"`{where}` does not begin with a turn: \\n\\nHuman: or \\n\\nAssistant:"
        )
    messages: list[tuple[str, list[str]]] = []
    for speaker, said in zip(turns[::2], turns[1::2], strict=True):
        role = _ROLES[speaker]
        if messages and messages[-1][0] == role:
            messages[-1][1].append(said.strip())
        else:
            messages.append((role, [said.strip()]))
    return [{"role": role, "content": "\n\n".join(paragraphs)} for role, paragraphs in messages]


def parted(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """The messages that two dialogues have in common, and what is left of each.

    What is left begins with the first answer in which they differ; of two of which one is the
    other's beginning, with the last message of the shorter one.

    Raises:
        BadChat: they part at a message of the user, or have nothing in common.
    """
    most = min(len(chosen), len(rejected)) - 1
    common = 0
    while common < most and _said(chosen[common]) == _said(rejected[common]):
        common += 1
    if any(messages[common]["role"] != "assistant" for messages in (chosen, rejected)):
        raise BadChat(
            "prompts_differ",
            f"the two dialogues part at message {common + 1}, which is not the assistant's in "
            "both: they answer different prompts",
            "give both answers of a pair the same prompt",
        )
    if not common:
        raise BadChat("no_prompt", "the dialogues begin with the answers: there is no prompt")
    return chosen[:common], chosen[common:], rejected[common:]


def _said(message: Message) -> tuple[str, str]:
    return message["role"], message["content"]
