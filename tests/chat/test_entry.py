"""What is typed: a message, or a command."""

from __future__ import annotations

import pytest

from bc2.chat.entry import COMMANDS, Command, help_text, read_entry
from bc2.errors import UsageError


def typed(text: str) -> tuple[str | Command, list[str]]:
    """The entry of lines, and the prompts before each that was read."""
    lines, prompts = iter(text.split("\n")), []

    def line(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    return read_entry(line), prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "hello"),
        (" hello ", " hello "),
        ("", ""),
        ("one\\\ntwo\\\nthree", "one\ntwo\nthree"),
        ("a\\\\\nb", "a\\\nb"),
        ("one\\\n", "one\n"),
        ('"""\none\n\n two\\\n"""', "one\n\n two\\"),
        (' """ \n"""', ""),
        ('"""quoted"""', '"""quoted"""'),
        ('say """', 'say """'),
        ("//etc/passwd is a file", "/etc/passwd is a file"),
        ("// a comment", "/ a comment"),
        # Lines of a longer message are no commands (ollama, issue 1607), nor is its first line.
        ('"""\n/exit\n//x\n"""', "/exit\n//x"),
        ("/api/chat is\\\n/reset", "/api/chat is\n/reset"),
        ("//x\\\ny", "//x\ny"),
        (" /exit", " /exit"),
    ],
)
def test_messages(text: str, message: str) -> None:
    entry, prompts = typed(text)
    assert entry == message
    assert prompts == ["> ", *["... "] * text.count("\n")]


def test_a_pasted_line_may_have_its_end() -> None:
    assert read_entry(lambda _: "/save c.json\n") == Command("/save", "c.json")
    assert read_entry(lambda _: "one\ntwo\n\n") == "one\ntwo"


def test_a_pasted_line_holds_line_ends() -> None:
    pasted = iter(["/exit\n//x\n/reset"])
    assert read_entry(lambda _: next(pasted)) == "/exit\n//x\n/reset"
    goes_on = iter(["one\ntwo\\", "three"])
    assert read_entry(lambda _: next(goes_on)) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/reset", Command("/reset", "")),
        ("/exit ", Command("/exit", "")),
        ("/save a b.json ", Command("/save", "a b.json")),
        ("/params top_k=3  temperature=0", Command("/params", "top_k=3  temperature=0")),
        ("/system", Command("/system", "")),
        ('/system ""', Command("/system", '""')),
    ],
)
def test_commands(text: str, command: Command) -> None:
    assert typed(text) == (command, ["> "])


@pytest.mark.parametrize(
    ("text", "what", "todo"),
    [
        ("/rest", "no such command: /rest", "did you mean /reset? write //rest to say it"),
        ("/", "no such command: /", "/help lists them; write // to say it"),
        ("/Users/me " + "x" * 40, "no such command: /Users/me", "write //... to say it"),
        ("/reset now", "/reset takes nothing after it", "write /reset alone"),
        ("/SAVE x", "no such command: /SAVE", "/help lists them"),
    ],
)
def test_what_is_no_command(text: str, what: str, todo: str) -> None:
    with pytest.raises(UsageError) as raised:
        typed(text)
    assert raised.value.what == what
    assert raised.value.todo is not None
    assert todo in raised.value.todo


def test_the_end_of_the_lines_inside_a_message() -> None:
    for text in ('"""\none', "one\\"):
        with pytest.raises(EOFError):
            typed(text)


def test_help_names_every_command() -> None:
    assert all(f"{name} " in help_text() for name in COMMANDS)
