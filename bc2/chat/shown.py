"""What a person or a program sees of a chat. Imports no torch."""

from __future__ import annotations

import sys

from bc2.chat.saved import Saved
from bc2.chat.talk import Talk, Turn
from bc2.console import check_output, note, printable, spelled_out
from bc2.errors import DataError


class Shown:
    """Text on stdout as it grows; on a terminal a model's control characters are spelled out."""

    def __init__(self) -> None:
        self._spelled = sys.stdout.isatty()
        self._last = ""

    def add(self, text: str) -> None:
        print(spelled_out(text) if self._spelled else text, end="", flush=True)
        check_output()
        self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            self.add("\n")


def resume(talk: Talk, saved: Saved) -> None:
    """Go on with a conversation that was saved, and say so.

    Raises:
        DataError: see `Talk.restore`.
    """
    try:
        why = talk.restore(saved)
    except DataError as error:
        place = str(saved.path) if error.where is None else f"{saved.path}, {error.where}"
        raise DataError(error.what, where=place, todo=error.todo) from None
    anew = f"; {why}, so its tokens were made anew from its texts" if why else ""
    count = len(talk.dialogue.rounds)
    note(printable(f"{saved.path}: {count} {'round' if count == 1 else 'rounds'}{anew}"))


def remarks(turn: Turn, left_out: int, talk: Talk) -> list[str]:
    """What a person is told of an answer.

    Args:
        left_out: rounds that were left out before it.
    """
    found = []
    window, longest = talk.dialogue.window, talk.settings.max_new_tokens
    room = f"the window of {window:,} has room for {window - longest:,} tokens beside the answer"
    if turn.left_out > left_out:
        of = f"{turn.left_out:,} of {len(talk.dialogue.rounds) - 1:,} rounds before this one"
        found.append(f"{of} are left out, the oldest: {room}")
    if turn.cut:
        with_system = "" if talk.dialogue.system is None else ", with the system's before it,"
        found.append(f"the message{with_system} lost its beginning, {turn.cut:,} tokens: {room}")
    if turn.finish_reason == "length":
        found.append(f"the answer was cut after {len(turn.ids):,} tokens (max_new_tokens)")
    return found
