"""What a person types: a message of one line or several, or a command. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bc2.errors import UsageError, nearest

#: Stands alone in the lines before and after a message of several lines.
FENCE = '"""'

#: Commands, with what they take and do.
COMMANDS = {
    "/reset": ("", "forget the conversation; the system's message stays"),
    "/save": ("FILE", "write the conversation"),
    "/load": ("FILE", "go on with a conversation that was saved"),
    "/params": ("[NAME=VALUE ...]", "show how answers are drawn, or change it"),
    "/system": ("[TEXT]", 'show the system\'s message, or change it; "" for none'),
    "/help": ("", "show this"),
    "/exit": ("", "end; Ctrl-D does it too"),
}


@dataclass(frozen=True)
class Command:
    """A line that is not said to the model."""

    name: str
    argument: str


def read_entry(line: Callable[[str], str]) -> str | Command:
    """Read a message or a command.

    A line that ends in a backslash goes on in the next one, and lines between two of `FENCE` are
    one message. So is a pasted text, whose last line may have an end. Only a single line is a
    command; ``//`` begins a message with a slash.

    Args:
        line: gives the next line, without its end, after a prompt; or a pasted text.

    Raises:
        UsageError: there is no such command.
    """
    first = line("> ").rstrip("\n")  # of a pasted text
    if first.strip() == FENCE:
        lines: list[str] = []
        while (more := line("... ")).strip() != FENCE:
            lines.append(more)
        return "\n".join(lines)
    if not first.endswith("\\") and "\n" not in first:  # a pasted line may hold line ends
        return _single(first)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(line("... "))
    return "\n".join(lines)


def _single(line: str) -> str | Command:
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        guess = nearest(name, COMMANDS)
        other = f"/{line}" if len(line) < 40 else "//..."
        todo = f"did you mean {guess}? " if guess else "/help lists them; "
        raise UsageError(f"no such command: {name}", todo=f"{todo}write {other} to say it")
    if not COMMANDS[name][0] and argument.strip():
        raise UsageError(f"{name} takes nothing after it", todo=f"write {name} alone")
    return Command(name, argument.strip())


def help_text() -> str:
    """What can be typed."""
    rows = [(f"{name} {takes}".rstrip(), does) for name, (takes, does) in COMMANDS.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {does}" for name, does in rows]
    return "\n".join(
        [
            *lines,
            f"A line that ends in \\ goes on; so do lines between two of {FENCE}.",
            "// begins a message with a slash. Ctrl-C ends an answer; what was said stays.",
        ]
    )
