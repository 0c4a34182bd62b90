"""Imported chat templates, in Jinja, as transformers has them.

transformers renders a conversation to text and looks for control tokens in all of it, so that
what a user types can become one. Here they are found in what the template itself wrote: names of
control tokens in messages are broken by a character that the tokens then lack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bc2.errors import DataError
from bc2.tokenizer.chat import IGNORED, Chat, Message, check_messages, learns, weight_of
from bc2.tokenizer.chat_parts import Control, PartEncoder, Text
from bc2.tokenizer.chat_sandbox import MessagesDeclined, SandboxedTemplate, refused
from bc2.tokenizer.tokenizer import Tokenizer

#: Code points that are no characters, one of which breaks names in messages.
_BREAKS = [chr(point) for point in range(0xFDD0, 0xFDF0)]

#: Conversations that a template is tried with, as roles; s, u, a for their first letters.
_TRIALS = ("ua", "sua", "uaua", "suaua", "uauaua", "suauaua")


class TemplateChat(Chat):
    """A Jinja template over a tokenizer.

    Args:
        tokens: what the template knows by name, such as ``bos_token``; the tokenizer's own
            beginning and end of text where they are not given.

    Raises:
        DataError: adding a turn would change earlier tokens, what is the assistant's cannot be
            told, or the template does what it may not.
    """

    name = "jinja"

    def __init__(
        self, template: str, tokenizer: Tokenizer, tokens: Mapping[str, str] | None = None
    ):
        self.template = template
        self.tokenizer = tokenizer
        self._given = dict(tokens or {})
        self._sandbox = SandboxedTemplate(template)
        own = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
        names = {name: tokenizer.piece_of(i) for name, i in own.items() if i >= 0}
        self._tokens = {**names, **self._given}
        self._specials = {name: i for name, i in tokenizer.special_ids.items() if name}
        longest = sorted(self._specials, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._encode = PartEncoder(tokenizer, ())
        self._own: list[str] = []
        self.end_ids = self._tried()

    def to_json(self) -> dict[str, Any]:
        return {"layout": self.name, "template": self.template, "tokens": self._given}

    # -- tokens

    def parts(
        self, messages: Sequence[Message], *, generation_prompt: bool = False
    ) -> list[Control | Text]:
        check_messages(messages)
        if messages[0]["role"] == "assistant":
            raise DataError("the assistant has the first word", todo="begin with a user's message")
        self._see_that_none_is_typed(messages)
        self._see_that_answers_alone_are_learnt(messages)
        answers = [message for message in messages if message["role"] == "assistant"]
        messages = [{"role": one["role"], "content": one["content"]} for one in messages]
        text, spans = self._text(messages, generation_prompt)
        broken = self._break(messages)
        if broken is not None:
            text, spans = self._without_break(messages, text, broken, generation_prompt)
        return list(self._parts(text, spans, answers, broken))

    def _text(
        self, messages: Sequence[Message], generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template writes, and where in it the answers with their ends begin and end."""
        whole = self._write(messages, generation_prompt)
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._write(messages[:number], True)
            after = self._write(messages[: number + 1], False)
            if not after.startswith(before) or not whole.startswith(after):
                raise refused("adding a turn changes what is before it")
            spans.append((len(before), len(after)))
        return whole, spans

    def _write(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        return self._sandbox.render(
            messages, add_generation_prompt=generation_prompt, **self._tokens
        )

    def _parts(
        self,
        text: str,
        spans: Sequence[tuple[int, int]],
        answers: Sequence[Message],
        broken: str | None,
    ) -> Iterator[Control | Text]:
        """Control tokens and text; of an answer all up to the first control token is learnt."""
        place = 0
        for (start, end), answer in zip(spans, answers, strict=True):
            yield from self._cut(text[place:start], broken)
            place = start
            stop = self._found.search(text, start, end)
            if stop is None:
                raise refused("nothing ends an answer that is a special token of the tokenizer")
            learnt, weight = learns(answer), weight_of(answer)
            yield Text(_plain(text[start : stop.start()], broken), learnt, weight)
            token = self._specials[stop[0]]
            yield Control(token, token if learnt else IGNORED, weight)
            yield from self._cut(text[stop.end() : end], broken)
            place = end
        yield from self._cut(text[place:], broken)

    def _cut(self, text: str, broken: str | None) -> Iterator[Control | Text]:
        place = 0
        for found in self._found.finditer(text):
            yield Text(_plain(text[place : found.start()], broken))
            yield Control(self._specials[found[0]], IGNORED)
            place = found.end()
        yield Text(_plain(text[place:], broken))

    # -- names of control tokens in messages

    def _break(self, messages: Sequence[Message]) -> str | None:
        """A code point that is not there, if messages hold the name of a control token."""
        texts = [message["content"] for message in messages]
        if not any(self._found.search(text) for text in texts):
            return None
        used = set(self.template).union(*texts)
        free = next((point for point in _BREAKS if point not in used), None)
        if free is None:
            raise DataError("the messages hold all code points from U+FDD0 to U+FDEF")
        return free

    def _without_break(
        self, messages: Sequence[Message], plain: str, broken: str, generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """`_text` of messages whose names of control tokens are broken."""
        apart = [
            {**message, "content": self._found.sub(lambda m: m[0][0] + broken + m[0][1:], text)}
            for message in messages
            for text in [message["content"]]
        ]
        text, spans = self._text(apart, generation_prompt)
        if text.replace(broken, "") != plain:
            raise refused("it does something with the names of special tokens in a message")
        return text, spans

    def _see_that_none_is_typed(self, messages: Sequence[Message]) -> None:
        """Refuse what the tokenizer would take for a token that the template writes itself.

        These are tokens that it does not call special, which it finds in any text. The assistant
        may write them: it can also choose them.
        """
        for number, message in enumerate(messages):
            typed = next((name for name in self._own if name in message["content"]), None)
            if typed is not None and message["role"] != "assistant":
                raise DataError(
                    f"it holds {typed}, which the template writes and the tokenizer does not call "
                    "special",
                    where=f"message {number}",
                    todo=f"leave {typed} out, or mark it as special in tokenizer.json",
                )

    def _see_that_answers_alone_are_learnt(self, messages: Sequence[Message]) -> None:
        """Where a template writes what the user says is not known."""
        for number, message in enumerate(messages):
            if message["role"] != "assistant" and learns(message):
                raise DataError(
                    f"a template's {message['role']} text cannot be learnt",
                    where=f"message {number}",
                    todo="train the assistant's messages alone, or use a layout that bc2 knows",
                )

    # -- whether it can be used

    def _tried(self) -> tuple[int, ...]:
        """The ids that end an answer, found in conversations that the template is tried with."""
        ends: dict[int, None] = {}
        for roles in _TRIALS:
            messages = _conversation(roles)
            try:
                self._write(messages, False)
            except DataError as error:
                if "s" in roles:
                    continue  # some templates have no place for a system message, and say so
                if isinstance(error, MessagesDeclined):
                    raise refused(error.reason) from None
                raise
            self._see_that_specials_are_whole(messages)
            try:
                ends |= dict.fromkeys(self._ends_of(messages))
            except DataError:
                if "s" in roles:
                    continue  # such conversations are refused when they come
                raise
            written = self._write(messages, False)
            self._own = [name for name in self.tokenizer.added_ids if name in written]
        if self.tokenizer.eos_id >= 0:
            ends[self.tokenizer.eos_id] = None
        return tuple(ends)

    def _ends_of(self, messages: Sequence[Message]) -> Iterator[int]:
        """The ids that are learnt at the ends of answers."""
        whole = self.render(messages)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], generation_prompt=True).ids
            after = self.render(messages[: number + 1]).ids
            if after[: len(before)] != before or whole.ids[: len(after)] != after:
                raise refused("adding a turn changes tokens before it")
            learnt = [label for label in whole.labels[len(before) : len(after)] if label != IGNORED]
            said = self.tokenizer.decode(learnt)
            if message["content"] not in said:
                raise refused("what the assistant says cannot be found in what it writes")
            yield learnt[-1]

    def _see_that_specials_are_whole(self, messages: Sequence[Message]) -> None:
        """Refuse a template with which a message could complete a special token."""
        text = self._write(messages, False)
        for message in messages:
            before, _, after = text.partition(message["content"])
            for name in self._specials:
                cuts = range(1, len(name))
                if any(before.endswith(name[:at]) or after.startswith(name[at:]) for at in cuts):
                    raise refused(f"it writes a part of {name} beside a message")


def _conversation(roles: str) -> list[Message]:
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [
        {"role": names[role], "content": f"Word {number} of {names[role]}, and more."}
        for number, role in enumerate(roles)
    ]


def _plain(text: str, broken: str | None) -> str:
    return text if broken is None else text.replace(broken, "")
