"""`bc2 chat` at a terminal: what is typed, shown, stopped and saved."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import made_checkpoints
import pytest
import warmed

from bc2.chat.saved import read_saved

#: How long a command may take to show what it is waited for, seconds, on a busy machine.
SOON_S = 60.0

#: How readline draws a prompt, and the end of a line, which no model says.
PROMPT, MORE, ENTERED = "\x1b[?2004h> ", "\x1b[?2004h... ", "\x1b[?2004l\r"

LAYOUT = {"chat.json": b'{"layout": "baichuan"}'}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """says-7; endless, whose answers take minutes; garbled, which says control characters."""
    home = tmp_path_factory.mktemp("home")
    made_checkpoints.register(home, "says-7", made_checkpoints.saying("#### 7"), files=LAYOUT)
    garbled = made_checkpoints.saying("7\x1b[2J\r\n#")
    made_checkpoints.register(home, "garbled", garbled, files=LAYOUT)
    endless = {"generation.json": b'{"temperature": 0.0, "max_new_tokens": 60000}', **LAYOUT}
    made_checkpoints.register(home, "endless", made_checkpoints.drawn(window=65536), files=endless)
    return home


class Person:
    """`bc2 chat` on a terminal of its own; stderr, a pipe, is read at its end."""

    def __init__(
        self, home: Path, folder: Path, *args: str, out: Path | None = None, **variables: str
    ):
        self.terminal, own = pty.openpty()
        env = {**os.environ, "BC2_HOME": str(home), "TERM": "xterm", "INPUTRC": "/dev/null"}
        env |= variables
        with (out or Path(os.devnull)).open("wb") as file:
            self.process = warmed.Popen(
                [sys.executable, "-P", "-m", "bc2", "chat", *args], stdin=own,
                stdout=file if out else own, stderr=subprocess.PIPE, cwd=folder, env=env,
            )  # fmt: skip
        os.close(own)
        self.seen = ""
        self._at = 0

    def sees(self, text: str) -> None:
        """Wait for a text after those that were seen before."""
        self._waits(lambda: text in self.seen[self._at :], text)
        self._at = self.seen.index(text, self._at) + len(text)

    def hears(self) -> None:
        """Wait for the beginning of an answer to the line that was typed."""
        self.sees(ENTERED)
        self._waits(lambda: len(self.seen) > self._at + 8, "an answer")

    def _waits(self, until: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + SOON_S
        while not until():
            left = end - time.monotonic()
            assert left > 0, f"{what!r} was not shown after {self.seen[self._at :]!r}"
            if select.select([self.terminal], [], [], left)[0]:
                self.seen += os.read(self.terminal, 1 << 16).decode("utf-8", "replace")

    def types(self, text: str) -> None:
        """Type after a prompt."""
        self.sees(PROMPT)
        os.write(self.terminal, text.encode())

    def asks(self, text: str) -> None:
        """Type a line after a prompt."""
        self.types(f"{text}\n")

    def presses_ctrl_c(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ends(self) -> tuple[int, str]:
        """The exit code, and stderr."""
        _, err = self.process.communicate(timeout=SOON_S)
        os.close(self.terminal)
        assert b"Traceback" not in err, err.decode()
        return self.process.returncode, err.decode()


@pytest.fixture
def started(home: Path, tmp_path: Path) -> Iterator[type[Person]]:
    """Starts `bc2 chat`; it is ended with the test."""
    people: list[Person] = []

    class Started(Person):
        def __init__(self, *args: str, out: Path | None = None, **variables: str):
            super().__init__(home, tmp_path, *args, out=out, **variables)
            people.append(self)

    yield Started
    for person in people:
        person.process.kill()
        person.process.wait()


def test_a_conversation(started: type[Person], tmp_path: Path) -> None:
    """Commands, several lines, a pasted text; what is written is what was said."""
    person = started("says-7", "--system", "Answer.")
    person.asks("what is four?")
    person.sees("#### 7")
    person.asks("/params top_k=3 seed=9")
    person.asks("/sytem x")
    person.asks("")
    person.asks("//exit is\\")
    person.sees(MORE)
    os.write(person.terminal, b"no command\n")
    person.sees("#### 7")
    person.asks('"""')
    for line in ("/exit", "  two", '"""'):
        person.sees(MORE)
        os.write(person.terminal, f"{line}\n".encode())
    person.sees("#### 7")
    person.asks("\x1b[200~/reset\n/exit\x1b[201~")
    person.sees("#### 7")
    person.asks("/system Be short.")
    person.asks("/save c.json")
    person.asks("/reset")
    person.asks("/load c.json")
    person.asks("and?")
    person.sees("#### 7")
    person.asks("/save c.json")
    person.types("\x04")
    code, err = person.ends()
    assert code == 0
    assert "checkpoint/says-7, baichuan layout, a window of 4,096 tokens\n" in err
    assert "max_new_tokens=2048 temperature=0.3 top_k=5 top_p=0.85 " in err
    assert " top_k=3 top_p=0.85 min_p=0.0 repetition_penalty=1.05 seed=9\n" in err
    assert "error: no such command: /sytem; did you mean /system? write //sytem x to say it" in err
    assert "system: Be short.\nsaved: c.json\nc.json: 4 rounds\nsaved: c.json\n" in err
    saved = read_saved(tmp_path / "c.json")
    said = ["what is four?", "//exit is\nno command", "/exit\n  two", "/reset\n/exit", "and?"]
    assert [one.user for one in saved.rounds] == said
    assert {one.answer for one in saved.rounds} == {"#### 7"}
    assert (saved.system, saved.intact, saved.sampling["top_k"]) == ("Be short.", True, 3)


def test_ctrl_c_ends_an_answer_and_what_was_said_stays(
    started: type[Person], tmp_path: Path
) -> None:
    person = started("endless")
    for _ in range(3):
        person.asks("go on")
        person.hears()
        person.presses_ctrl_c()
    person.asks("/save c.json")
    person.sees(PROMPT)
    person.presses_ctrl_c()  # all of it is saved
    assert person.ends()[0] == 0
    rounds = read_saved(tmp_path / "c.json").rounds
    assert [one.user for one in rounds] == ["go on"] * 3
    assert all(0 < len(one.said) < 60_000 for one in rounds)


def test_ctrl_c_does_not_lose_a_conversation_at_once(started: type[Person]) -> None:
    """llama.cpp, issue 1158: meant for an answer, it came when that had just ended."""
    person = started("says-7", "--quiet")
    person.asks("what is four?")
    person.sees("#### 7")
    person.sees(PROMPT)
    person.presses_ctrl_c()
    person.asks("and?")
    person.sees("#### 7")
    person.sees(PROMPT)
    person.presses_ctrl_c()
    person.asks("/svae c.json")  # said first, and mistyped
    for _ in range(2):
        person.sees(PROMPT)
        person.presses_ctrl_c()
    code, err = person.ends()
    told = "the conversation is not saved: /save FILE, or Ctrl-C again to end\n"
    assert (code, err.count(told), err.count("error: no such command")) == (0, 3, 1)


def test_a_message_of_several_lines_can_be_given_up(started: type[Person]) -> None:
    """ollama, issue 3829: a line that went on could not be left."""
    person = started("says-7", "--quiet")
    person.asks('"""')
    person.sees(MORE)
    person.presses_ctrl_c()
    person.asks("one\\")
    person.sees(MORE)
    os.write(person.terminal, b"\x04")
    person.types("\x04")
    assert person.ends() == (0, "\n\n\n")
    assert "####" not in person.seen


def test_bytes_that_are_no_text_are_not_sent(started: type[Person]) -> None:
    """lmdeploy, issue 672: half a character was left over by an editor of lines."""
    person = started("says-7", "--quiet")
    person.sees(PROMPT)
    os.write(person.terminal, b"ab\xffcd\n")
    person.asks("what is four?")
    person.sees("#### 7")
    person.asks("/exit")
    code, err = person.ends()
    assert (code, err) == (0, "the line is not UTF-8, and was not sent\n")


def test_any_text_can_be_typed_in_a_c_locale(started: type[Person], tmp_path: Path) -> None:
    """readline takes bytes beyond ASCII for keys there, unless it is told otherwise."""
    person = started("says-7", "--quiet", LC_ALL="C")
    person.asks("天地 é")
    person.sees("#### 7")
    person.asks("/save c.json")
    person.asks("/exit")
    assert person.ends() == (0, "saved: c.json\n")
    assert [one.user for one in read_saved(tmp_path / "c.json").rounds] == ["天地 é"]


def test_a_model_cannot_move_the_cursor(started: type[Person], tmp_path: Path) -> None:
    """But in a file its answer is as it is."""
    person = started("garbled", "--quiet", "--temperature", "0")
    person.asks("what is four?")
    person.sees("7\\x1b[2J\\x0d\r\n#\r\n")
    person.types("\x04")
    assert person.ends()[0] == 0
    out = tmp_path / "answers.txt"
    person = started("garbled", "--quiet", "--temperature", "0", out=out)
    os.write(person.terminal, b"what is four?\n/exit\n")
    assert person.ends()[0] == 0
    assert out.read_bytes() == b"7\x1b[2J\r\n#\n"


def test_answers_in_a_file_are_alone_there(started: type[Person], tmp_path: Path) -> None:
    out = tmp_path / "answers.txt"
    person = started("says-7", out=out)
    for line in (b"what is four?", b"/params", b"\xe7\xbe", b"and?", b"/exit"):
        os.write(person.terminal, line + b"\n")
    code, err = person.ends()
    assert (code, out.read_text()) == (0, "#### 7\n#### 7\n")
    assert err.count("> ") == 5
    assert "the line is not UTF-8, and was not sent\n" in err


def test_a_line_that_the_terminal_has_cut_is_not_sent(
    started: type[Person], tmp_path: Path
) -> None:
    person = started("says-7", "--quiet", out=tmp_path / "answers.txt")
    stderr = person.process.stderr.fileno()

    def hears(text: bytes) -> None:
        """Wait for the end of stderr: the terminal has no room for two such lines."""
        heard = b""
        while not heard.endswith(text):
            assert select.select([stderr], [], [], SOON_S)[0], heard
            heard += os.read(stderr, 1 << 16)

    told = b"the line has more bytes than a terminal gives, 4,095, and was not sent\n"
    hears(b"> ")
    for line, answer in ((b"x" * 4094, b"> "), (b"y" * 4095, told + b"> ")):
        os.write(person.terminal, line + b"\n")
        hears(answer)
    os.write(person.terminal, b"/save c.json\n/exit\n")
    assert person.ends()[0] == 0
    assert [one.user for one in read_saved(tmp_path / "c.json").rounds] == ["x" * 4094]


def test_what_cannot_be_done_is_said_and_changes_nothing(
    started: type[Person], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "broken.json").write_text(json.dumps({"bc2_chat": 1}))
    person = started("says-7", "--quiet")
    lines = (
        "/save", "/save mine.txt", "/save none/c.json", "/load none.json", "/load broken.json",
        "/params top_k", "/params top_k=x", "/params max_new_tokens=4096", "/params tempratur=1",
        "/reset all", "what is four?", '/system ""', "/exit",
    )  # fmt: skip
    for line in lines:
        person.asks(line)
    code, err = person.ends()
    assert code == 0
    said = re.findall("^error: (.*)$", err, re.MULTILINE)
    assert [one.split(" (")[0].split(";")[0] for one in said] == [
        "/save needs a file",
        "there is a file already, and not of a conversation",
        "no such directory for the file",
        "no such file while reading none.json",
        "no saved conversation: `model` has no title and digest",
        "no setting and value: 'top_k'",
        "top_k: 'x' is no number",
        "an answer of 4,096 tokens leaves nothing of the window of 4,096 for the conversation",
        "no such setting: 'tempratur'",
        "/reset takes nothing after it",
    ]
    assert err.endswith("no system message\n")
    assert "#### 7" in person.seen
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_signal_that_is_no_ctrl_c_ends_it(started: type[Person]) -> None:
    person = started("says-7", "--quiet")
    person.asks("what is four?")
    person.sees("#### 7")
    person.sees(PROMPT)
    person.process.send_signal(signal.SIGTERM)
    assert person.ends()[0] == 128 + signal.SIGTERM
