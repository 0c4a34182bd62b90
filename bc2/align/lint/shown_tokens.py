"""Conversations as people are shown them: each token, whether it is learnt, and where turns end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bc2.align.lint.figures import place_of
from bc2.align.lint.lint import LintTask
from bc2.align.lint.lint_report import Place
from bc2.align.samples.packing import pack_rows, repeated
from bc2.align.samples.rendered_chats import checked, marked, rendered_chats
from bc2.align.samples.sample import Sample
from bc2.align.sft.sft_inputs import render_settings
from bc2.data.chats.chats import Chats
from bc2.data.chats.conversation import Conversation
from bc2.data.splits import SPLITS, Split
from bc2.errors import DataError
from bc2.tokenizer.chat import IGNORED, Chat

#: Tokens that a character may be cut into.
_MOST_OF_A_CHARACTER = 8

#: Most ids of an example that are made tokens: pages show fewer, and one row may have millions.
_MOST_IDS = 8_000

#: Most conversations that a row number may mean: files and sources have the same numbers.
_MOST = 20


@dataclass(frozen=True)
class ShownToken:
    """A token; several that only together are whole characters."""

    ids: tuple[int, ...]
    text: str
    control: bool
    """Whether it is no text: a marker, a beginning or an end."""
    trained: bool
    learns: str
    """What is learnt in its place, where that is not the token itself; else empty."""
    weight: float


@dataclass(frozen=True)
class ShownSample:
    """A conversation as tokens."""

    place: Place
    faults: tuple[str, ...]
    tokens: tuple[ShownToken, ...]
    """Empty where the layout has no place for it."""
    more: int = 0
    """Ids after those of `tokens`."""
    more_trained: int = 0
    """Those of them that are learnt."""
    part: str = ""
    """Of a pair which answer it is: "chosen" or "rejected"."""

    @property
    def length(self) -> int:
        """Tokens."""
        return self.more + sum(len(token.ids) for token in self.tokens)

    @property
    def trained(self) -> int:
        """Tokens that are learnt."""
        return self.more_trained + sum(len(token.ids) for token in self.tokens if token.trained)


@dataclass(frozen=True)
class ShownRow:
    """A packed row."""

    samples: tuple[ShownSample, ...]
    padding: int
    """Positions that are left."""


def find_rows(task: LintTask, asked: str) -> list[ShownSample]:
    """The conversations that a row number means.

    Args:
        asked: ``N``, or ``SOURCE:N``, as findings name rows.

    Raises:
        DataError: there is none.
    """
    chats, chat = Chats.open(task.source.folder), task.source.chat()
    source, _, number = asked.rpartition(":")
    found = [
        (split, index)
        for split in SPLITS
        for index, one in enumerate(chats.read(split))
        if number == str(one.row) and source in ("", one.source)
    ]
    if not found:
        raise DataError(
            f"no conversation was read from row {asked}", where=task.chats,
            todo=f"give N or SOURCE:N; sources are {', '.join(chats.sources)}",
        )  # fmt: skip
    return [shown_sample(task, chats, chat, split, index) for split, index in found[:_MOST]]


def shown_places(task: LintTask, places: Sequence[Place]) -> list[ShownSample]:
    """The conversations at some places, of very long ones the beginning."""
    chats, chat = Chats.open(task.source.folder), task.source.chat()
    return [shown_sample(task, chats, chat, one.split, one.index, _MOST_IDS) for one in places]


def shown_sample(
    task: LintTask, chats: Chats, chat: Chat, split: Split, index: int, most: int | None = None
) -> ShownSample:
    """A conversation, whatever is wrong with it.

    Args:
        most: ids that are made tokens; None: all.
    """
    one = chats.at(split, index)
    one = replace(one, messages=marked(one.messages, task.config.train_on))
    return shown_conversation(one, place_of(chats, split, index, ""), chat, most)


def shown_conversation(
    one: Conversation, place: Place, chat: Chat, most: int | None = None
) -> ShownSample:
    """A conversation as `shown_sample` shows it, with the marks of what is learnt.

    Args:
        place: that is said of it.
    """
    rendered, faults = checked(one, chat)
    said = tuple(f"{code}: {why}" for code, why in faults)
    shown = ShownSample(place, said, ())
    if rendered is None:
        return shown
    ids, labels = rendered.ids[:most], rendered.labels[:most]
    rest = rendered.labels[len(ids) :]
    tokens = tuple(shown_tokens(ids, labels, rendered.weights[:most], chat))
    more_trained = len(rest) - rest.count(IGNORED)
    return replace(shown, tokens=tokens, more=len(rest), more_trained=more_trained)


def first_row(task: LintTask) -> ShownRow | None:
    """The first row of an epoch, as the model is given it; None: there are no samples."""
    chats, chat, config = Chats.open(task.source.folder), task.source.chat(), task.config
    samples = rendered_chats(task.source, "train", render_settings(config))
    times = np.array(chats.times)[chats.source_ids("train")[samples.index]]
    entries = repeated(times, config.seed)
    if not len(entries):
        return None
    rows = pack_rows(samples.lengths[entries], config.sequence_length, config.seed, epoch=0)
    places = entries[rows[0]].tolist()
    shown = [
        ShownSample(
            place_of(chats, "train", int(samples.index[place]), ""),
            (),
            tuple(_sample_tokens(samples.sample(place), chat)),
        )
        for place in places
    ]
    return ShownRow(tuple(shown), config.sequence_length - int(samples.lengths[places].sum()))


def _sample_tokens(sample: Sample, chat: Chat) -> list[ShownToken]:
    """A sample's tokens, and the last that is learnt, which the model says and is not given."""
    ids = [*sample.tokens.tolist(), int(sample.labels[-1])]
    labels = [IGNORED, *sample.labels.tolist()]
    return shown_tokens(ids, labels, [1.0, *sample.weights.tolist()], chat)


def shown_tokens(
    ids: Sequence[int], labels: Sequence[int], weights: Sequence[float], chat: Chat
) -> list[ShownToken]:
    """Tokens with what is learnt at each place, as in `bc2.tokenizer.chat.Rendered`."""
    shown: list[ShownToken] = []
    held: list[int] = []

    def show(places: Sequence[int], text: str, control: bool) -> None:
        last = places[-1]
        learnt, own = labels[last], tuple(ids[place] for place in places)
        other = control and learnt not in (IGNORED, ids[last])
        learns = chat.tokenizer.piece_of(learnt) if other else ""
        shown.append(ShownToken(own, text, control, learnt != IGNORED, learns, weights[last]))
        held.clear()

    for place, token in enumerate(ids):
        control = token in chat.markers or chat.tokenizer.is_control(token)
        if control and held:
            show(held, _said(ids, held, chat).decode("utf-8", "replace"), False)
        if control:
            show([place], chat.tokenizer.piece_of(token), True)
            continue
        held.append(place)
        said = _said(ids, held, chat)
        if _is_whole(said) or len(held) >= _MOST_OF_A_CHARACTER:
            show(held, said.decode("utf-8", "replace"), False)
    if held:
        show(held, _said(ids, held, chat).decode("utf-8", "replace"), False)
    return shown


def _said(ids: Sequence[int], places: Sequence[int], chat: Chat) -> bytes:
    return chat.tokenizer.decode_bytes([ids[place] for place in places])


def _is_whole(said: bytes) -> bool:
    try:
        said.decode()
    except UnicodeDecodeError:
        return False
    return True
