"""Lines that a person types, edited by readline where there is one. Imports no torch."""

from __future__ import annotations

import sys
from contextlib import suppress

#: Bytes of a line that Linux gives where no editor reads the keys; those after them are lost.
_LONGEST = 4095


class Spoilt(Exception):
    """A line that is not what was typed: it is no text in the terminal's encoding, or cut."""


class Broken(Exception):
    """Ctrl-C, where a line was waited for."""


class Keyboard:
    """Reads lines from a terminal.

    The prompt is on stdout if that is a terminal too, where readline draws it; else on stderr.
    """

    def __init__(self) -> None:
        #: Whether a line is being waited for: then a Ctrl-C has no answer to end.
        self.waiting = False
        self._drawn = sys.stdout.isatty()
        if self._drawn:
            _edit_lines()

    def line(self, prompt: str) -> str:
        """The next line without its end.

        Raises:
            EOFError: there is none: Ctrl-D, or the terminal is gone.
            Spoilt: it is not what was typed; its text says why.
        """
        self.waiting = True
        try:
            line = input(prompt) if self._drawn else self._plain(prompt)
            line.encode("utf-8")  # bytes that are no text may have become surrogates
        except UnicodeError:
            raise Spoilt("the line is not UTF-8") from None
        finally:
            self.waiting = False
        return line

    def _plain(self, prompt: str) -> str:
        print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        if len(line.removesuffix(b"\n")) >= _LONGEST:
            raise Spoilt(f"the line has more bytes than a terminal gives, {_LONGEST:,}")
        return line.decode(sys.stdin.encoding).removesuffix("\n")


def _edit_lines() -> None:
    """Let `input` edit lines, recall earlier ones, and take a pasted text as one line."""
    with suppress(ImportError):
        import readline

        if "libedit" not in (readline.__doc__ or ""):
            for setting in (
                # Python turns it off, lest its own prompt execute half of what is pasted.
                "enable-bracketed-paste on",
                "disable-completion on",
                # Where the locale is C, bytes beyond ASCII are keys for it, and not text.
                "input-meta on",
                "output-meta on",
                "convert-meta off",
            ):
                readline.parse_and_bind(f"set {setting}")
