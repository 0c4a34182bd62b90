"""A chat with a person at a terminal. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from bc2.chat.entry import Command, help_text, read_entry
from bc2.chat.keyboard import Broken, Keyboard, Spoilt
from bc2.chat.saved import read_saved, write_saved
from bc2.chat.shown import Shown, remarks, resume
from bc2.chat.talk import Talk
from bc2.console import note, printable
from bc2.errors import Bc2Error, DataError, UsageError, from_os_error
from bc2.process.signals import interrupts
from bc2.user_paths import expand_user


class Terminal:
    """Reads messages and commands, and shows answers as they grow.

    stdout has the answers alone; all else is on stderr.
    """

    def __init__(self, talk: Talk):
        self._talk = talk
        self._keyboard = Keyboard()
        #: Rounds that a file has.
        self._kept = len(talk.dialogue.rounds)
        #: Whether the last Ctrl-C did not end the chat.
        self._warned = False

    def run(self, *, greet: bool = True) -> None:
        """Talk until the person ends it.

        Args:
            greet: say first who speaks, and how answers are drawn.

        Raises:
            Bc2Error: the model cannot go on.
            ReaderGone, OutputLost: see `check_output`.
        """
        if greet:
            self._greet()
        with interrupts(self._interrupted):
            while self._take_one():
                pass

    def _greet(self) -> None:
        talk, dialogue = self._talk, self._talk.dialogue
        window = f"a window of {dialogue.window:,} tokens"
        note(f"{talk.artifact.title}, {dialogue.chat.name} layout, {window}")
        note(_shown_params(talk))
        note("/help lists commands, Ctrl-D ends")

    def _interrupted(self) -> None:
        """Ctrl-C ends an answer; where a line is waited for, the waiting."""
        if self._keyboard.waiting:
            self._keyboard.waiting = False  # a second one must not raise where nobody catches it
            raise Broken
        self._talk.speaker.stopped = True

    def _take_one(self) -> bool:
        """Follow one message or command; False: that was the end."""
        self._talk.speaker.stopped = False
        warned, self._warned = self._warned, False
        asked = _Asked(self._keyboard)
        try:
            entry = read_entry(asked)
        except Broken:
            note("")
            return asked.lines > 1 or not self._may_end(warned)
        except EOFError:
            note("")
            return asked.lines > 1
        except Spoilt as why:
            note(f"{why}, and was not sent")
            return True
        except UsageError as error:
            _tell(error)
            return True
        if isinstance(entry, str):
            if entry.strip():
                self._answer(entry)
            return True
        try:
            return self._obey(entry)
        except Bc2Error as error:
            _tell(error)
        except OSError as error:
            _tell(from_os_error(error, entry.name))
        return True

    def _may_end(self, warned: bool) -> bool:
        """Whether Ctrl-C ends the chat: not the first one, if that would lose what was said.

        Args:
            warned: whether the one before it, with nothing typed since, has said so.
        """
        lost = len(self._talk.dialogue.rounds) > self._kept
        if lost and not warned:
            self._warned = True
            note("the conversation is not saved: /save FILE, or Ctrl-C again to end")
            return False
        return True

    def _answer(self, message: str) -> None:
        talk, shown = self._talk, Shown()
        before = talk.dialogue.left_out
        try:
            turn = talk.say(message, shown.add)
        except (DataError, UsageError) as error:  # nothing was asked of the model yet
            _tell(error)
            return
        shown.end()
        for line in remarks(turn, before, talk):
            note(line)

    # -- commands

    def _obey(self, command: Command) -> bool:
        """Follow a command; whether to go on."""
        talk, argument = self._talk, command.argument
        if command.name == "/exit":
            return False
        if command.name == "/help":
            note(help_text())
        elif command.name == "/reset":
            talk.dialogue.clear()
            self._kept = 0
        elif command.name == "/params":
            self._params(argument)
        elif command.name == "/system":
            self._system(argument)
        elif command.name == "/save":
            path = _path(command)
            write_saved(path, talk.dialogue, talk.params, talk.artifact)
            self._kept = len(talk.dialogue.rounds)
            note(f"saved: {path}")
        else:
            resume(talk, read_saved(_path(command)))
            self._kept = len(talk.dialogue.rounds)
        return True

    def _params(self, argument: str) -> None:
        if argument:
            self._talk.set_params(parse_params(argument))
        note(_shown_params(self._talk))

    def _system(self, argument: str) -> None:
        if argument:
            self._talk.dialogue.set_system(None if argument == '""' else argument)
        system = self._talk.dialogue.system
        note("no system message" if system is None else f"system: {printable(system)}")


def parse_params(text: str) -> dict[str, float]:
    """The settings of ``name=value ...``.

    Raises:
        UsageError: it is not that.
    """
    found: dict[str, float] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"no setting and value: {word!r}", todo="write NAME=VALUE")
        try:
            found[name] = int(value)
        except ValueError:
            try:
                found[name] = float(value)
            except ValueError:
                raise UsageError(f"{name}: {value!r} is no number") from None
    return found


class _Asked:
    """Lines of one entry, counted."""

    def __init__(self, keyboard: Keyboard):
        self._keyboard = keyboard
        self.lines = 0

    def __call__(self, prompt: str) -> str:
        self.lines += 1
        return self._keyboard.line(prompt)


def _shown_params(talk: Talk) -> str:
    return " ".join(f"{name}={value}" for name, value in talk.params.items())


def _path(command: Command) -> Path:
    if not command.argument:
        raise UsageError(f"{command.name} needs a file", todo=f"write {command.name} FILE")
    return expand_user(command.argument, command.name)


def _tell(error: Bc2Error) -> None:
    note(f"error: {printable(str(error))}")
