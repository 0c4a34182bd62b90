"""Whether a conversation, as tokens and labels, teaches what it says: one row at a time.

What is certainly wrong is a fault. What may be meant, such as long rows or ones that are there
twice, is a figure: see `bc2.align.lint.figures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bc2.data.chats.conversation import Conversation
from bc2.errors import DataError
from bc2.tokenizer.chat import IGNORED, Chat, Message, Rendered, learns
from bc2.tokenizer.chat_parts import Control, Text

#: Each kind of fault: what it says of a row.
FAULTS = {
    "roles_out_of_order": "turns are not the user's and the assistant's in turn, system first",
    "empty_answer": "an answer that is to be learnt says nothing",
    "cut_answer": "an answer that is to be learnt visibly breaks off",
    "no_place": "the chat layout has no place for the conversation",
    "no_trained_tokens": "nothing of it is learnt",
    "end_never_trained": "an answer is learnt, but not where it ends",
    "doubled_bos": "the beginning of text stands twice",
    "control_id_from_text": "a message became a control token",
    "train_serve_difference": "the tokens before an answer are not those that serving gives",
}

#: Characters that are no white space, and show nothing: of no width, and byte order marks.
_INVISIBLE = dict.fromkeys((0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF))

#: A line that opens or closes a block of code: its backticks or tildes, and what follows them.
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a row."""

    code: str
    """Its kind, a key of `FAULTS`."""
    why: str


def row_faults(conversation: Conversation, rendered: Rendered, chat: Chat) -> list[Fault]:
    """What is wrong with a row, in the order of `FAULTS`.

    Args:
        conversation: exactly what was rendered, with the marks of `learns` that it had then.
        rendered: its tokens and labels.
        chat: the layout that rendered it.
    """
    return [*message_faults(conversation), *_token_faults(conversation.messages, rendered, chat)]


def unrendered_faults(conversation: Conversation, refused: DataError) -> list[Fault]:
    """What is wrong with a row that its chat layout refused to render."""
    where = f"{refused.where}: " if refused.where else ""
    return message_faults(conversation) or [Fault("no_place", f"{where}{refused.what}")]


# -- messages ------------------------------------------------------------------------------


def message_faults(conversation: Conversation) -> list[Fault]:
    """The faults that can be told without tokens."""
    faults = list(_order_faults(conversation.messages))
    for number, message in enumerate(conversation.messages):
        if message["role"] == "assistant" and learns(message):
            faults += _answer_faults(number, message["content"])
    return faults


def _order_faults(messages: Sequence[Message]) -> Iterator[Fault]:
    """The first message that is out of order: those after it mostly follow from that."""
    expected = "user"
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "system" and number == 0:
            continue
        if role != expected:
            before = f"after the {messages[number - 1]['role']}'s" if number else "at the beginning"
            why = f"message {number} is the {role}'s, {before}"
            yield Fault("roles_out_of_order", why)
            return
        expected = "assistant" if role == "user" else "user"


def _answer_faults(number: int, answer: str) -> Iterator[Fault]:
    text = answer.strip()
    if not text.translate(_INVISIBLE).strip():
        yield Fault("empty_answer", f"message {number}, the assistant's, is empty")
    elif text.endswith("\ufffd"):
        yield Fault("cut_answer", f"message {number} ends inside a character (U+FFFD)")
    elif ("```" in text or "~~~" in text) and _has_half_block(text):
        yield Fault("cut_answer", f"message {number} has one end of a block of code alone")


def _has_half_block(text: str) -> bool:
    """Whether a block of code lacks its other end, however blocks are read.

    Blocks in blocks, which are closed but not by Markdown's rule, have an even number of ends.
    """
    ends = _FENCE.findall(text)
    return len(ends) % 2 == 1 and _is_open(ends)


def _is_open(ends: Sequence[tuple[str, str]]) -> bool:
    """Whether Markdown reads the text after the last end as code."""
    opened = ""
    for mark, rest in ends:
        if not opened:
            opened = mark
        elif mark.startswith(opened) and not rest.strip():
            opened = ""
    return bool(opened)


# -- tokens --------------------------------------------------------------------------------


def _token_faults(messages: Sequence[Message], rendered: Rendered, chat: Chat) -> Iterator[Fault]:
    ids, labels = rendered.ids, rendered.labels
    if labels.count(IGNORED) == len(labels):
        yield Fault("no_trained_tokens", _why_nothing(messages))
    controls = _controls(chat)
    at = [place for place, token in enumerate(ids) if token in controls]
    whole = _segments(chat.parts(messages))
    answers = [
        _Answer(number, _segments(chat.parts(messages[:number], generation_prompt=True)))
        for number, message in enumerate(messages)
        if number and message["role"] == "assistant" and messages[number - 1]["role"] != "assistant"
    ]
    written = [one for one in whole if isinstance(one, int)]
    # Fewer of them are a row that was cut: then an answer at the end has no end.
    laid_out = [ids[place] for place in at] == written[: len(at)]
    if laid_out:
        yield from _end_faults(messages, answers, labels, at, chat)
    yield from _beginning_faults(ids, chat)
    if laid_out:
        yield from _served_faults(messages, answers, ids, at, whole, chat)
    else:
        yield Fault("control_id_from_text", _why_control(messages, ids, at, chat))


@lru_cache(maxsize=4)
def _controls(chat: Chat) -> frozenset[int]:
    """The ids that no text becomes."""
    return chat.markers | frozenset(chat.tokenizer.special_ids.values()) - {chat.tokenizer.unk_id}


#: A control token, or all text up to the next one.
_Segment = int | str


def _segments(parts: Iterable[Control | Text]) -> list[_Segment]:
    """Parts as they are encoded: texts side by side are one."""
    segments: list[_Segment] = []
    for part in parts:
        if isinstance(part, Control):
            segments.append(part.token)
        elif segments and isinstance(segments[-1], str):
            segments[-1] += part.text
        elif part.text:
            segments.append(part.text)
    return segments


@dataclass(frozen=True)
class _Answer:
    """An answer with a message before it, and what serving gives the model before it."""

    number: int
    asked: list[_Segment]

    @property
    def heading(self) -> str:
        """The text after the last control token, which in training the answer continues."""
        return self.asked[-1] if self.asked and isinstance(self.asked[-1], str) else ""

    @property
    def controls(self) -> int:
        """How many control tokens are before it."""
        return sum(isinstance(one, int) for one in self.asked)


def _why_nothing(messages: Sequence[Message]) -> str:
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        return "it has no message of the assistant"
    if not any(map(learns, messages)):
        return "every message says `train: false`"
    return "what is to be learnt is not in its tokens"


def _end_faults(
    messages: Sequence[Message], answers: Sequence[_Answer], labels: Sequence[int],
    at: Sequence[int], chat: Chat,
) -> Iterator[Fault]:  # fmt: skip
    """At the control token after an answer, an end is to be learnt.

    Args:
        at: places of the control tokens.
    """
    for answer in answers:
        if not learns(messages[answer.number]):
            continue
        end = answer.controls
        if end >= len(at):
            yield Fault("end_never_trained", f"nothing ends message {answer.number}")
        elif labels[at[end]] not in chat.end_ids:
            why = f"the end of message {answer.number} (token {at[end]}) is not learnt"
            yield Fault("end_never_trained", why)


def _beginning_faults(ids: Sequence[int], chat: Chat) -> Iterator[Fault]:
    begin, end = chat.tokenizer.bos_id, chat.tokenizer.eos_id
    if begin < 0 or ids.count(begin) < 2:
        return
    # Where the end of text is the beginning too, one may follow the other.
    places = range(len(ids) - 1) if begin != end else (0,)
    doubled = next((i for i in places if ids[i] == ids[i + 1] == begin), None)
    if doubled is not None:
        yield Fault("doubled_bos", f"tokens {doubled} and {doubled + 1}")


def _why_control(
    messages: Sequence[Message], ids: Sequence[int], at: Sequence[int], chat: Chat
) -> str:
    """Which control token is the first that stands where the layout has none."""
    asked = dict(enumerate(chat.render(messages).ids))
    place = next((place for place in at if ids[place] != asked.get(place)), None)
    if place is None:
        return "a control token of the layout is missing"
    return f"token {place} is {chat.tokenizer.piece_of(ids[place])}"


def _served_faults(
    messages: Sequence[Message], answers: Sequence[_Answer], ids: Sequence[int],
    at: Sequence[int], whole: Sequence[_Segment], chat: Chat,
) -> Iterator[Fault]:  # fmt: skip
    """Each prompt is to be the beginning of the row.

    The last prompt, which has all others' text in it, is made as serving makes it; of the others
    only what is after their last control token is encoded again.
    """
    for answer in answers:
        if answer is answers[-1]:
            prompt = chat.prompt(messages[: answer.number])
            same = ids[: len(prompt)] == prompt
        else:
            before = answer.asked[: len(answer.asked) - bool(answer.heading)]
            same = before == whole[: len(before)] and _continues(answer, ids, at, chat)
        if not same:
            begins = messages[answer.number]["content"][:1].isspace()
            why = f"before message {answer.number}"
            joined = ", which begins with white space" if begins else ""
            yield Fault("train_serve_difference", why + joined)


def _continues(answer: _Answer, ids: Sequence[int], at: Sequence[int], chat: Chat) -> bool:
    """Whether the heading's tokens are those that stand after the control token before it."""
    heading = chat.encode_parts([Text(answer.heading)]).ids if answer.heading else []
    start = at[answer.controls - 1] + 1 if answer.controls else 0
    return ids[start : start + len(heading)] == heading
