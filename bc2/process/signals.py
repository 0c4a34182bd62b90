"""What a signal does to a command: the first one ends it in order, a second one at once.

SIGINT (Ctrl-C), SIGTERM and SIGHUP end a command with exit code 128 + the signal; what was ignored
when the process started (nohup, disown, ``&`` in a script) stays ignored. `arm` is the first thing
that the process does, before it imports anything that takes long. From then on:

- Until a command runs, nothing is held: the process ends at once.
- A running command gets an exception, `SignalReceived`, between two instructions of Python's. Never
  inside an import, which may swallow it and would leave half a module, nor in a ``__del__``, which
  does swallow it, nor while it is `shielded`. What calls Python from C may swallow it too, or make
  another error of it: it is raised again until it is on its way through the command. If that has
  not begun within `PATIENCE_S`, since a call into C or an import takes longer, the process ends
  at once.
- What has a better answer takes signals over (`taken`): a run saves its last step. A conversation
  takes Ctrl-C over, as often as it comes (`interrupts`): it ends an answer and not the command.
- A second signal ends the process and all that it started at once, whatever it is doing.

Ended at once is as good as SIGKILL, which every command survives. To see a signal whatever the main
thread does is the work of a thread, to which Python's own handler writes through a pipe.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

#: Set for ranks that `bc2.launch` started: the launcher speaks for them.
LAUNCHED = "BC2_LAUNCHED"

#: The numbers of the signals that its launcher ignores: a rank does, too. It cannot inherit that,
#: since torch sets handlers before it starts ranks.
IGNORED = "BC2_IGNORED_SIGNALS"

#: They end a command. SIGQUIT is the system's: it ends a process at once.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

#: How long a running command may take to begin to end, seconds: elsewhere, and in an import.
PATIENCE_S = (2.0, 0.5)

#: How long a command that has its result may take to leave after a first signal, seconds.
_LEAVE_S = 1.0

#: Signals that come within so many seconds are one: `timeout` sends to a process and to its group.
_SAME_S = 0.05

_POLL_S = 0.01

#: How often the main thread is woken for a Ctrl-C that has another meaning.
_WAKES = 5

#: Wakes the main thread; nothing else uses it, and the system ignores it in who does not know it.
_WAKE = signal.SIGURG


class SignalReceived(KeyboardInterrupt):
    """A signal that ends the command, which cleans up as it does after Ctrl-C."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class _State:
    """Of this process."""

    armed = False
    silent = False
    """Whether a launcher speaks for this process, which is a rank."""
    phase: Literal["starting", "running", "ending"] = "starting"
    ignored: frozenset[int] = frozenset()
    first: int | None = None
    """The first signal."""
    at = 0.0
    """When it was first seen, monotonic seconds."""
    late = False
    """Whether it came when the command was ending by itself."""
    following = False
    """Whether an exception of it was on its way when the main thread last looked."""
    raised: BaseException | None = None
    error: Callable[[int], BaseException] = SignalReceived
    taker: Callable[[int], None] | None = None
    breaker: Callable[[], None] | None = None
    """What Ctrl-C does instead."""
    broke_at = -math.inf
    """When it had that meaning last, monotonic seconds: the thread that watches may see it late."""
    told = False
    """Whether `taker` was given the first signal: the thread that watches may note it first."""
    shields = 0

    def note(self, signum: int) -> bool:
        """Remember a signal; whether it is the first."""
        if self.first is not None:
            return False
        self.first, self.at, self.late = signum, time.monotonic(), self.phase == "ending"
        return True

    def breaks(self, signum: int) -> bool:
        """Whether a signal is a Ctrl-C that has another meaning than to end the command."""
        ago = 0.0 if self.breaker is not None else time.monotonic() - self.broke_at
        return signum == signal.SIGINT and ago < _SAME_S


_state = _State()


def signal_of(stop: KeyboardInterrupt) -> int:
    """The signal that an exception is of; Python's own is of Ctrl-C."""
    return stop.signum if isinstance(stop, SignalReceived) else signal.SIGINT


def arm() -> None:
    """Follow signals from now on. In the main thread, once; no signal is blocked afterwards."""
    # SIGTERM is always obeyed: it is how ranks are stopped when one of them fails.
    started = (signal.SIGINT, signal.SIGHUP)
    told = os.environ.get(IGNORED, "").split()
    _state.ignored = frozenset(
        one for one in started if signal.getsignal(one) is signal.SIG_IGN or str(one.value) in told
    )
    read, write = os.pipe()
    os.set_blocking(write, False)
    install()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    _state.armed, _state.silent = True, LAUNCHED in os.environ
    sys.unraisablehook = _unraisable
    os.register_at_fork(after_in_child=_disarm)
    with _blocked():
        threading.Thread(target=_watch, args=(read,), name="bc2-signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def install() -> None:
    """Set the handlers; again where a library may have set its own."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN if signum in _state.ignored else _handle)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(_WAKE, _handle)


def armed() -> bool:
    """Whether `arm` was called: the process is a command's own, not a test's or a notebook's."""
    return _state.armed


def ignored() -> str:
    """What ranks find in `IGNORED`."""
    return " ".join(str(int(signum)) for signum in _state.ignored)


def received() -> int | None:
    """The first signal that came, if one did."""
    return _state.first


def raised() -> int | None:
    """The signal that an exception was raised for, if one was."""
    return None if _state.raised is None else _state.first


@contextmanager
def interruptible() -> Iterator[None]:
    """A command runs in the block: signals raise `SignalReceived` in it. Afterwards it ends."""
    _state.phase = "running"
    try:
        yield
    finally:
        _state.phase = "ending"


@contextmanager
def raising(error: Callable[[int], BaseException]) -> Iterator[None]:
    """Signals raise another exception in the block, made from their number."""
    before, _state.error = _state.error, error
    try:
        yield
    finally:
        _state.error = before
        if _state.armed:
            install()


@contextmanager
def taken(handle: Callable[[int], None]) -> Iterator[None]:
    """Signals raise nothing in the block: the first is given to `handle`, in the main thread.

    Raises:
        SignalReceived: one came, and yet the block came to its end.
    """
    before = {} if _state.armed else {signum: signal.getsignal(signum) for signum in SIGNALS}
    for signum, handler in before.items():
        if signum == signal.SIGTERM or handler is not signal.SIG_IGN:
            signal.signal(signum, _handle)
    _state.told, _state.taker = False, handle
    try:
        if _state.first is not None:
            _tell(_state.first)
        yield
        if _state.first is not None:
            raise SignalReceived(_state.first)
    finally:
        _state.taker = None
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if not _state.armed:
            _state.first = None


@contextmanager
def interrupts(handle: Callable[[], None]) -> Iterator[None]:
    """Each Ctrl-C calls `handle` in the main thread, which may raise, and ends nothing by itself.

    Where it was ignored when the process started it stays ignored.
    """
    before = None if _state.armed else signal.getsignal(signal.SIGINT)
    if before is not None and before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _handle)
    _state.breaker = handle
    try:
        yield
    finally:
        _state.broke_at, _state.breaker = time.monotonic(), None
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def shielded() -> Iterator[None]:
    """Signals wait for the end of the block, and never reach the processes it starts."""
    _state.shields += 1
    try:
        with _blocked():
            yield
    finally:
        _state.shields -= 1
        if _state.armed and _state.first is not None:
            signal.raise_signal(_WAKE)


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Say nothing of a swallowed signal: it is raised again."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def _disarm() -> None:
    """A fork without an exec is no command: it must not write to the pipe of its parent."""
    _state.armed = False
    signal.set_wakeup_fd(-1)
    for signum in (*SIGNALS, _WAKE):
        if signum not in _state.ignored:
            signal.signal(signum, signal.SIG_DFL)


def _again(signum: int, first_at: float) -> bool:
    """Whether a signal that is not the first asks to end at once.

    One hang-up is reported by the terminal, by the shell and by the shell's end.
    """
    return signum != signal.SIGHUP and time.monotonic() - first_at > _SAME_S


# -- in the main thread --------------------------------------------------------------------


def _handle(signum: int, frame: FrameType | None) -> None:
    """Python calls it between two instructions of the main thread."""
    if _state.breaker is not None and signum == signal.SIGINT and _state.first is None:
        _state.breaker()
        return
    first = signum != _WAKE and _state.note(signum)
    if _state.first is None:
        return
    if not (first or signum == _WAKE or _state.armed) and _again(signum, _state.at):
        _end_at_once(signum)  # nobody watches
    if _state.taker is not None:
        _tell(_state.first)
    elif _state.phase == "starting" and _state.armed:
        _end_at_once(_state.first)
    elif _state.phase == "running":
        _interrupt(_state.first, frame)


def _tell(signum: int) -> None:
    """Give the first signal to who has taken signals over, once."""
    if _state.taker is not None and not _state.told:
        _state.told = True
        _state.taker(signum)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _state.following = _on_its_way()
    if _state.following or _state.shields or _must_not_raise(frame):
        return
    _state.following = True
    _state.raised = _state.error(signum)
    raise _state.raised


def _on_its_way() -> bool:
    """Whether what runs now cleans up after a signal, or after an error that stands for one."""
    error = sys.exception()
    while error is not None:
        if error is _state.raised or isinstance(error, KeyboardInterrupt):
            return True
        if getattr(error, "exit_code", None) in {128 + signum for signum in SIGNALS}:
            return True
        error = error.__cause__ or error.__context__
    return False


def _must_not_raise(frame: FrameType | None) -> bool:
    """Whether an exception would leave half a module, or would be swallowed."""
    while frame is not None:
        code = frame.f_code
        # A compiled module's own initialisation is called from there too.
        if code.co_filename.startswith("<frozen importlib") or code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


# -- in a thread of its own ----------------------------------------------------------------


def _watch(pipe: int) -> NoReturn:
    """See every signal, and see to it that it is followed."""
    first_at: float | None = None
    wakes = 0
    waiting = select.poll()  # select takes no descriptor above 1,023
    waiting.register(pipe, select.POLLIN)
    while True:
        idle = _state.first is None and not wakes
        if waiting.poll(None if idle else 1000 * _POLL_S):
            for signum in os.read(pipe, 1 << 12):
                if _state.breaks(signum):
                    wakes = _WAKES
                    continue
                if signum not in SIGNALS:
                    continue
                _state.note(signum)
                # By this thread's clock: it may be late for both.
                first_at = first_at or time.monotonic()
                if _again(signum, first_at):
                    _end_at_once(signum)
        if _state.first is not None:
            _press(_state.first)
        elif wakes:
            wakes -= 1
            time.sleep(_POLL_S)  # a wake is seen here too, so that polling would not wait
            _wake()


def _press(signum: int) -> None:
    """Look whether the first signal is followed; raise it again, or end, where it is not."""
    waited = time.monotonic() - _state.at
    if _state.phase == "starting":
        _end_at_once(signum)
    elif _state.phase == "ending":
        if _state.late and waited > _LEAVE_S:
            _end_at_once(signum)
    elif _state.taker is None:
        main = threading.main_thread().ident or 0
        importing = _must_not_raise(sys._current_frames().get(main))
        if not _state.following and waited > PATIENCE_S[importing]:
            _end_at_once(signum)
        _wake()


def _wake() -> None:
    """Have the main thread look: the signal may have come just before it began to wait."""
    signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)


# -- at once -------------------------------------------------------------------------------


def _end_at_once(signum: int) -> NoReturn:
    """End this process and all that it started. Imports nothing: the main thread may be in one."""
    _kill_descendants()
    if not _state.silent:
        _say(
            "error: interrupted\n"
            "  to do: run the same command again; finished stages are not repeated\n"
        )
    os._exit(128 + signum)


def _say(text: str) -> None:
    """Write to stderr, unless that would block or nobody reads it."""
    try:
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode())
    except (OSError, ValueError):
        pass


def _kill_descendants() -> None:
    """Kill the processes that this one started, and those that they did (Linux).

    They are stopped first, so that none starts another unseen. Elsewhere each kind of worker
    ends when it sees that its parent is gone.
    """
    stopped: set[int] = set()
    while new := _descendants() - stopped:
        _send(new, signal.SIGSTOP)
        stopped |= new
    _send(stopped, signal.SIGKILL)


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stream:
                parent = int(stream.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it has ended
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found - {_resource_tracker()}


def _resource_tracker() -> Any:
    """multiprocessing's own process, which removes the semaphores of a dead parent and ends."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return getattr(getattr(module, "_resource_tracker", None), "_pid", None)


def _send(pids: set[int], signum: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except OSError:
            continue  # it has ended, or is another user's
