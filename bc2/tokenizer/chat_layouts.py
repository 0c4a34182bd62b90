"""The chat layouts that bc2 knows by name, each from one definition.

========  =====================================================================================
baichuan  The released one of Baichuan 2: the system's text as it is, then each turn after its
          marker, ids 195 and 196. Nothing ends a turn but the next marker, and the last answer's
          end of text; at the marker after an answer the end of text is learnt. Too long a
          conversation loses its oldest rounds.
chatml    ``<|im_start|>user\\nTEXT<|im_end|>\\n``, Qwen's.
llama3    ``<|start_header_id|>user<|end_header_id|>\\n\\nTEXT<|eot_id|>`` after
          ``<|begin_of_text|>``, TEXT without white space around it.
========  =====================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bc2.errors import DataError
from bc2.tokenizer.chat import ROLES, Chat, Message, check_messages, learns, weight_of
from bc2.tokenizer.chat_parts import Control, PartEncoder, Text
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer

_RESERVED = re.compile(r"<reserved_\d+>")


@dataclass(frozen=True)
class Special:
    """A control token of a layout, by its name or its id; -1 is the tokenizer's end of text."""

    token: str | int

    def of(self, tokenizer: Tokenizer, layout: str) -> int:
        """Its id. Raises: DataError if the tokenizer has none."""
        if isinstance(self.token, str):
            token = tokenizer.special_ids.get(self.token, -1)
        else:
            token = tokenizer.eos_id if self.token < 0 else self.token
        if not tokenizer.has(token) or not self._marks(tokenizer, token):
            what = "an end of text" if self.token == -1 else f"the special token {self.token}"
            raise DataError(
                f"the {layout} layout needs {what}, which this tokenizer has not got",
                todo="choose the layout that the model was trained with",
            )
        return token

    def _marks(self, tokenizer: Tokenizer, token: int) -> bool:
        """Whether a token has no other use. Released Baichuan models have reserved pieces."""
        return tokenizer.is_control(token) or bool(_RESERVED.fullmatch(tokenizer.piece_of(token)))


EOS = Special(-1)

_Part = Special | str
#: Heading and ending of a turn.
_Turn = tuple[Sequence[_Part], Sequence[_Part]]


@dataclass(frozen=True)
class TurnLayout:
    """A layout of turns, each between a heading and an ending."""

    name: str
    turns: Mapping[str, _Turn]
    """Heading and ending by role; an assistant's ending begins with what is learnt."""
    end: Special
    """What ends an answer."""
    begin: Sequence[Special] = field(default=())
    """Before the first turn."""
    closing: Sequence[Special] = field(default=())
    """After the last turn, if it is the assistant's, where its ending is nothing. Between turns
    it is learnt at the place of the next marker."""
    trims: bool = False
    """Whether texts lose the white space around them."""
    keeps_rounds: bool = False
    """Whether too long a conversation loses its oldest rounds."""


def _named(
    before: Sequence[_Part], after: Sequence[_Part], ending: Sequence[_Part]
) -> Mapping[str, _Turn]:
    """The turns of a layout that writes the name of the role into the heading."""
    return {role: ((*before, role, *after), ending) for role in ROLES}


LAYOUTS = {
    layout.name: layout
    for layout in (
        TurnLayout(
            "baichuan",
            {
                "system": ((), ()),
                "user": ((Special(USER_ID),), ()),
                "assistant": ((Special(ASSISTANT_ID),), ()),
            },
            end=EOS,
            closing=(EOS,),
            keeps_rounds=True,
        ),
        TurnLayout(
            "chatml",
            _named([Special("<|im_start|>")], ["\n"], [Special("<|im_end|>"), "\n"]),
            end=Special("<|im_end|>"),
        ),
        TurnLayout(
            "llama3",
            _named(
                [Special("<|start_header_id|>")],
                [Special("<|end_header_id|>"), "\n\n"],
                [Special("<|eot_id|>")],
            ),
            end=Special("<|eot_id|>"),
            begin=(Special("<|begin_of_text|>"),),
            trims=True,
        ),
    )
}


class TurnChat(Chat):
    """A `TurnLayout` over a tokenizer.

    Raises:
        DataError: the tokenizer has not got one of its control tokens.
    """

    def __init__(self, layout: TurnLayout, tokenizer: Tokenizer):
        self.name = layout.name
        self.tokenizer = tokenizer
        self.cuts_beginnings = layout.keeps_rounds
        self._layout = layout
        turns = [part for turn in layout.turns.values() for side in turn for part in side]
        specials = [
            part
            for part in (*layout.begin, *layout.closing, *turns, layout.end)
            if isinstance(part, Special)
        ]
        self._ids = {part: part.of(tokenizer, layout.name) for part in specials}
        self._encode = PartEncoder(tokenizer, self._ids.values())
        self.markers = frozenset(i for i in self._ids.values() if not tokenizer.is_control(i))
        ends = (self._ids[layout.end], tokenizer.eos_id)
        self.end_ids = tuple(dict.fromkeys(i for i in ends if i >= 0))
        self.template = self.export()

    def to_json(self) -> dict[str, Any]:
        return {"layout": self.name}

    # -- tokens

    def parts(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[Control | Text]:
        check_messages(messages)
        return list(self._parts(messages, generation_prompt))

    def _parts(
        self, messages: Sequence[Message], generation_prompt: bool
    ) -> Iterator[Control | Text]:
        layout = self._layout
        yield from self._ending(layout.begin, None)
        previous: Message | None = None
        for message in messages:
            heading, ending = layout.turns[message["role"]]
            yield from self._heading(heading, previous)
            text = message["content"].strip() if layout.trims else message["content"]
            yield Text(text, learns(message), weight_of(message))
            yield from self._ending(ending, message)
            previous = message
        if generation_prompt:
            yield from self._heading(layout.turns["assistant"][0], previous)
        elif previous is not None and previous["role"] == "assistant":
            yield from self._ending(layout.closing, previous)

    def _heading(
        self, parts: Sequence[_Part], previous: Message | None
    ) -> Iterator[Control | Text]:
        """A turn's heading; its marker may stand where the answer before it is to end."""
        ended = previous is not None and previous["role"] == "assistant" and learns(previous)
        implied = self._layout.closing if ended else ()
        for part in parts:
            if isinstance(part, str):
                yield Text(part)
            elif implied and previous is not None:
                yield Control(self._ids[part], self._ids[implied[0]], weight_of(previous))
            else:
                yield Control(self._ids[part])
            implied = ()

    def _ending(self, parts: Sequence[_Part], message: Message | None) -> Iterator[Control | Text]:
        """An ending, of which the first token is learnt if the message is."""
        learnt = message is not None and learns(message)
        for part in parts:
            if isinstance(part, str):
                yield Text(part)
            elif learnt and message is not None:
                yield Control(self._ids[part], self._ids[part], weight_of(message))
                learnt = False
            else:
                yield Control(self._ids[part])

    def prompt(self, messages: Sequence[Message], room: int | None = None) -> list[int]:
        ids = super().prompt(messages)
        if room is None or len(ids) <= room or not self._layout.keeps_rounds:
            return ids
        return self._kept(messages, room)

    def _kept(self, messages: Sequence[Message], room: int) -> list[int]:
        """Whole rounds, the newest first, as many as there is room for: as the released model.

        The newest round is always kept. What is still too long loses its beginning.
        """
        system, rounds = _rounds(messages)
        first = self._encode(self._parts(system, False)).ids if system else []
        kept: list[int] = []
        for one in reversed(rounds):
            ids = self._encode(self._parts(one, False)).ids
            if one[-1]["role"] == "assistant":
                ids = ids[: -len(self._layout.closing)]
            if kept and len(first) + len(kept) + len(ids) > room:
                break
            kept = ids + kept
        heading = self._encode(self._heading(self._layout.turns["assistant"][0], None)).ids
        return [*first, *kept, *heading][-room:] if room > 0 else []

    # -- export

    def export(self, *, generation: bool = False) -> str:
        """The layout as a Jinja template for transformers.

        Args:
            generation: mark what is learnt with ``{% generation %}``, which not every reader of
                templates knows.
        """
        layout = self._layout
        content = "message['content']" + (" | trim" if layout.trims else "")
        lines = [self._jinja(layout.begin), "{%- for message in messages %}"]
        for number, (role, (heading, ending)) in enumerate(layout.turns.items()):
            marks = generation and role == "assistant"
            learnt, rest = (ending[:1], ending[1:]) if role == "assistant" else ((), ending)
            lines += [
                f"{{%- {'el' if number else ''}if message['role'] == '{role}' %}}",
                self._jinja(heading),
                "{%- generation %}" if marks else "",
                "{{- " + content + " }}",
                self._jinja(learnt),
                "{%- endgeneration %}" if marks else "",
                self._jinja(rest),
            ]
        lines += ["{%- endif %}", "{%- endfor %}", "{%- if add_generation_prompt %}"]
        lines.append(self._jinja(layout.turns["assistant"][0]))
        if layout.closing:
            lines.append("{%- elif messages[-1]['role'] == 'assistant' %}")
            lines.append(self._jinja(layout.closing))
        return "\n".join(line for line in [*lines, "{%- endif %}"] if line)

    def _jinja(self, parts: Sequence[_Part]) -> str:
        """Parts as Jinja expressions that leave out the white space before them."""
        texts = [
            part if isinstance(part, str) else self.tokenizer.piece_of(self._ids[part])
            for part in parts
        ]
        quoted = "".join(texts).replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
        return "{{- '" + quoted + "' }}" if quoted else ""


def _rounds(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system message if there is one, and the others in rounds that the user begins."""
    system = [message for message in messages if message["role"] == "system"]
    rounds: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message["role"] == "user" or not rounds:
            rounds.append([])
        rounds[-1].append(message)
    return system, rounds
