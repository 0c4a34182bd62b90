"""Parts of a conversation, control tokens and text, made into tokens and labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from bc2.tokenizer.chat import IGNORED, Rendered
from bc2.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Control:
    """A token that no text becomes."""

    token: int
    label: int = IGNORED
    """What is to be learnt in its place."""
    weight: float = 1.0
    """How much that counts."""


@dataclass(frozen=True)
class Text:
    """Text, encoded together with other text right beside it."""

    text: str
    learnt: bool = False
    weight: float = 1.0
    """How much each of its labels counts."""


def written(parts: Iterable[Control | Text], tokenizer: Tokenizer) -> str:
    """Parts as a template writes them: control tokens by their names."""
    return "".join(
        part.text if isinstance(part, Text) else tokenizer.piece_of(part.token) for part in parts
    )


class PartEncoder:
    """Encodes parts.

    Args:
        markers: tokens that a layout has a use for. Where the tokenizer takes them for ordinary
            pieces, their spelling in a text is cut after its first character.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Iterable[int]):
        self._tokenizer = tokenizer
        pieces = [tokenizer.piece_of(i) for i in markers if not tokenizer.is_control(i)]
        typed = [re.escape(piece) for piece in pieces if len(piece) > 1]
        self._typed = re.compile("|".join(typed)) if typed else None

    def __call__(self, parts: Iterable[Control | Text]) -> Rendered:
        """The tokens of parts, text between two control tokens encoded as one."""
        rendered = Rendered([], [], [])
        waiting: list[Text] = []
        for part in parts:
            if isinstance(part, Text):
                waiting.append(part)
                continue
            self._add_text(waiting, rendered)
            waiting = []
            rendered.ids.append(part.token)
            rendered.labels.append(part.label)
            rendered.weights.append(part.weight)
        self._add_text(waiting, rendered)
        return rendered

    def _add_text(self, parts: Sequence[Text], rendered: Rendered) -> None:
        """Texts side by side are those of one message, and what the layout writes around it."""
        text = "".join(part.text for part in parts)
        whole = {part.learnt for part in parts if part.text}
        if len(whole) < 2:
            ids = [i for piece in self._uncut(text) for i in self._tokenizer.encode(piece)]
            labels = ids if True in whole else [IGNORED] * len(ids)
        else:
            ids, labels = self._partly_learnt(parts, text)
        rendered.ids.extend(ids)
        rendered.labels.extend(labels)
        weight = next((part.weight for part in parts if part.learnt and part.text), 1.0)
        rendered.weights.extend([weight] * len(ids))

    def _partly_learnt(self, parts: Sequence[Text], text: str) -> tuple[list[int], list[int]]:
        """The ids of a text, and the labels of those that hold nothing but what is learnt.

        A token that also holds the end of a turn's heading can never follow that heading.
        """
        flags = [part.learnt for part in parts for _ in part.text]
        learnt = [0, *accumulate(flags)]
        ids: list[int] = []
        labels: list[int] = []
        start = 0
        for piece in self._uncut(text):
            spans = self._tokenizer.spans(piece)
            for token, (first, last) in zip(spans.ids, spans.characters, strict=True):
                only = learnt[start + last] - learnt[start + first] == last - first > 0
                ids.append(token)
                labels.append(token if only else IGNORED)
            start += len(piece)
        return ids, labels

    def _uncut(self, text: str) -> Iterator[str]:
        start = 0
        while self._typed is not None and (found := self._typed.search(text, start)):
            yield text[start : found.start() + 1]
            start = found.start() + 1
        if text[start:]:
            yield text[start:]
