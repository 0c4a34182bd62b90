"""stdin, stdout and stderr as bc2 needs them, whatever it was started with.

What is printed is a courtesy: where it cannot be written (closed, a terminal that is gone, a full
disk), the work goes on. `install` replaces the streams of Python by ones that never raise and
print any text in any encoding. What is lost of stdout is remembered, see `lost_output`.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import stat
import sys
from typing import Any

#: What an encoding lacks is printed as what looks like it, and else as an escape.
_LOOKS_LIKE = {
    "·": "-", "–": "-", "—": "-", "−": "-", "─": "-", "…": "...", "×": "x", "±": "+-", "²": "^2",
    "³": "^3", "→": "->", "≤": "<=", "≥": ">=", "“": '"', "”": '"', "‘": "'", "’": "'", "█": "#",
    **dict(zip("▁▂▃▄▅▆▇", "_.-:=+*", strict=True)),
}  # fmt: skip

#: The name of the error handler of the streams.
READABLE = "bc2.readable"


def _readable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    shown = [
        _LOOKS_LIKE.get(one) or one.encode("ascii", "backslashreplace").decode() for one in lacking
    ]
    return "".join(shown), error.end


codecs.register_error(READABLE, _readable)


class _Courteous(io.RawIOBase):
    """A descriptor whose failures are remembered and not raised.

    Args:
        fd: to write to; it stays open.
        name: of the stream.
        once: whether nothing more is written after a failure. A result with a hole in it is worth
            less than none; a note is worth having after others were lost.
    """

    def __init__(self, fd: int, name: str, *, once: bool):
        self._fd = fd
        self._once = once
        self.name = name
        self.mode = "wb"
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        rest = left = bytes(data)
        while left and not (self._once and self.failure):
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Another process that has the same pipe made it non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                self.failure = self.failure or error
                break
        return len(rest)


def install() -> None:
    """Open what was closed, and replace `sys.stdout` and `sys.stderr`.

    A stream that somebody has put into the place of Python's own stays.
    """
    hold_descriptors()
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    for fd, name in ((1, "stdout"), (2, "stderr")):
        stream, own = getattr(sys, name), getattr(sys, f"__{name}__")
        if stream is own and _writes_to(stream, fd):
            courteous = _text_stream(stream, fd, name)
            setattr(sys, name, courteous)
            setattr(sys, f"__{name}__", courteous)


def hold_descriptors() -> None:
    """Open 0, 1 and 2 where they are closed, for this process and those that it starts.

    Call it before any file or pipe is opened: one that got the number of a closed stream would be
    written to by all who print.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is taken: this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _writes_to(stream: Any, fd: int) -> bool:
    try:
        return stream is None or stream.fileno() == fd
    except (OSError, ValueError):
        return False


def _text_stream(old: Any, fd: int, name: str) -> io.TextIOWrapper:
    """A stream like `old`, which may be None, that never raises."""
    if old is not None:
        old.flush()
    raw = _Courteous(fd, f"<{name}>", once=name == "stdout")
    unbuffered = old is not None and old.write_through  # python -u
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=old.encoding if old is not None else "utf-8",
        errors=READABLE,
        line_buffering=old.line_buffering if old is not None else True,
        write_through=unbuffered,
    )


def lost_output() -> OSError | None:
    """Why something that was written to stdout did not get there; None: nothing is lost."""
    raw = _raw_stdout()
    if raw is None:
        return None
    sys.stdout.flush()
    return raw.failure


def forgive_lost_output() -> None:
    """Write on, and count nothing that was lost so far."""
    raw = _raw_stdout()
    if raw is not None:
        raw.failure = None


def _raw_stdout() -> _Courteous | None:
    buffer = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, _Courteous) else None


def reader_gone(failure: OSError) -> bool:
    """Whether nobody was there to read any more: a pipe's reader ended, a terminal is gone."""
    if failure.errno == errno.EIO:
        return stat.S_ISCHR(os.fstat(1).st_mode)
    return failure.errno in (errno.EPIPE, errno.ECONNRESET)


def start_again_in_utf8() -> None:
    """Run this command anew where Python can name no file beyond ASCII.

    Python takes UTF-8 in a C locale by itself, unless it is told not to (``PYTHONUTF8=0``). Then a
    path in a recipe, which is UTF-8, would have no bytes.
    """
    tried = os.environ.get("PYTHONUTF8") == "1"
    if sys.getfilesystemencoding() == "ascii" and sys.executable and not tried:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that it starts, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
