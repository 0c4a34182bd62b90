"""Signals at every moment of a command: it always ends, and with the right exit code."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

BC2 = [sys.executable, "-P", "-m", "bc2"]
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

#: How soon a command is gone after a signal at its start, seconds, on a busy machine.
SOON_S = 15.0

#: A command whose body is `{body}`; what it says comes with the signal that it ends by.
COMMAND = """
import ctypes, hashlib, os, signal, subprocess, sys, threading, time
from bc2.process import signals
signals.arm()
def say(*words): print(*words, flush=True)
try:
    with signals.interruptible():
        say("ready")
{body}
        say("went on")
except KeyboardInterrupt as stop:
    say("interrupted")
    sys.exit(128 + signals.signal_of(stop))
"""


def started(
    body: str, folder: Path, *, ignored: Sequence[int] = (), program: str = COMMAND
) -> subprocess.Popen[str]:
    """Start a command; it has said that it is ready."""
    text = program.replace("{body}", "".join(f"        {line}\n" for line in body.splitlines()))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", text], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=lambda: ignore(ignored),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def ignore(signums: Sequence[int]) -> None:
    for signum in (INT, TERM, HUP):
        signal.signal(signum, signal.SIG_IGN if signum in signums else signal.SIG_DFL)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit code, what was said, and stderr."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err


CLEANS_UP = """
try:
    say("inside")
    time.sleep(60)
finally:
    time.sleep(0.3)
    say("cleaned up")
"""


def cleaning_up(folder: Path) -> subprocess.Popen[str]:
    """A command that has something to clean up."""
    process = started(CLEANS_UP, folder)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    return process


#: Each swallows the first exception, or would.
SWALLOWED = {
    "except": """
end = time.monotonic() + 60
while time.monotonic() < end:
    try: time.sleep(0.2)
    except BaseException: pass
    time.sleep(0.001)
""",
    "__del__": """
class Slow:
    def __del__(self): time.sleep(0.2); say("deleted")
Slow()
time.sleep(60)
""",
    "callback": """
@ctypes.CFUNCTYPE(None)
def slow(): time.sleep(0.2)
end = time.monotonic() + 60
while time.monotonic() < end: slow()
""",
    "import": """
open("fragile.py", "w").write("import time; time.sleep(0.3); whole = True")
sys.path.insert(0, ".")
try: import fragile
except BaseException: say("half a module")
time.sleep(60)
""",
    "shield": """
end = time.monotonic() + 60
while time.monotonic() < end:
    with signals.shielded():
        try: time.sleep(0.2)
        except BaseException: say("not shielded")
""",
}


@pytest.mark.parametrize("signum", [INT, TERM, HUP])
def test_a_command_cleans_up_once(signum: int, tmp_path: Path) -> None:
    process = cleaning_up(tmp_path)
    process.send_signal(signum)
    assert ended(process) == (128 + signum, ["cleaned up", "interrupted"], "")


@pytest.mark.parametrize("how", SWALLOWED)
def test_what_swallows_a_signal_gets_it_again(how: str, tmp_path: Path) -> None:
    process = started(SWALLOWED[how], tmp_path)
    time.sleep(0.05)
    process.send_signal(TERM)
    code, said, err = ended(process)
    assert (code, err) == (143, "")
    assert said == [*(["deleted"] if how == "__del__" else []), "interrupted"]


#: What no exception can end: a call into C, and imports, the last one in the start of the command.
DEAF = {
    "call": 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)',
    "import": 'open("slow.py", "w").write("import time; time.sleep(60)")\n'
    'sys.path.insert(0, ".")\nimport slow',
}


@pytest.mark.parametrize("how", DEAF)
def test_what_cannot_be_interrupted_is_ended(how: str, tmp_path: Path) -> None:
    process = started(DEAF[how], tmp_path)
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(INT)
    code, said, err = ended(process)
    assert (code, said) == (130, [])
    assert err.startswith("error: interrupted\n  to do: run the same command again")
    assert time.monotonic() - began < SOON_S


#: Waits for ever when it is to clean up, and so does what it started, in a session of its own.
DEAF_FAMILY = """
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True);"
deaf += "time.sleep(600)"
child = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
kin = subprocess.Popen([sys.executable, "-c", child, deaf], start_new_session=True,
                       stdout=subprocess.PIPE)
kin.stdout.readline()
try:
    say("started")
    time.sleep(600)
finally:
    say("cleaning up")
    threading.Lock().acquire() and hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, TERM), (INT, TERM), (HUP, INT)])
def test_a_second_signal_ends_everything(first: int, second: int, tmp_path: Path) -> None:
    process = started(DEAF_FAMILY, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    process.send_signal(first)
    assert process.stdout.readline() == "cleaning up\n"
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(second)
    assert process.wait(30) == 128 + second
    assert time.monotonic() - began < 1
    assert psutil.wait_procs(family, timeout=5)[1] == []
    process.communicate()


@pytest.mark.parametrize("twice", [(TERM, 0.0), (HUP, 0.2)])
def test_one_event_told_twice_is_one(twice: tuple[int, float], tmp_path: Path) -> None:
    """`timeout` sends to a process and to its group; a hang-up comes from several sides."""
    signum, gap = twice
    process = cleaning_up(tmp_path)
    process.send_signal(signum)
    time.sleep(gap)
    process.send_signal(signum)
    assert ended(process) == (128 + signum, ["cleaned up", "interrupted"], "")


@pytest.mark.parametrize("signum", [INT, HUP])
def test_what_was_ignored_stays_ignored(signum: int, tmp_path: Path) -> None:
    process = started("time.sleep(0.5)", tmp_path, ignored=[signum])
    process.send_signal(signum)
    assert ended(process) == (0, ["went on"], "")
    process = started("time.sleep(60)", tmp_path, ignored=[signum])
    process.send_signal(signum)
    process.send_signal(TERM)
    assert ended(process) == (143, ["interrupted"], "")


#: Half a second in C without the lock of Python, as in an operator of torch: the thread that
#: watches sees a signal before the main thread can.
TAKEN = """
got = []
with signals.taken(lambda signum: got.append(signum)):
    data = bytes(1 << 28)
    say("began")
    hashlib.sha256(data)
    say("goes on", *map(int, got))
"""


@pytest.mark.parametrize("signum", [INT, TERM, HUP])
def test_who_takes_signals_is_told_once(signum: int, tmp_path: Path) -> None:
    process = started(TAKEN, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signum)
    assert ended(process) == (128 + signum, [f"goes on {int(signum)}", "interrupted"], "")


def test_a_fork_is_no_part_of_the_command(tmp_path: Path) -> None:
    body = "pid = os.fork()\nif not pid: say(os.getpid()); time.sleep(600)\n"
    body += "say(os.waitpid(pid, 0)[1])"
    process = started(body, tmp_path)
    assert process.stdout is not None
    os.kill(int(process.stdout.readline()), TERM)
    assert ended(process) == (0, [f"{TERM.value}", "went on"], "")


#: A library that makes an error of what is raised in it, as pydantic's core does; and one that
#: fails by itself.
MISTAKEN = """
import sys, time
from bc2.process import signals
signals.arm()
from bc2 import cli
from bc2.commands import doctor
from bc2.errors import DataError
def fail():
    print("ready", flush=True)
    try: time.sleep(0.5)
    except BaseException: pass
    raise DataError("of a library")
for command in doctor.app.registered_commands: command.callback = fail
cli.main(["doctor"])
"""


def test_an_error_made_of_a_signal_is_the_signal(tmp_path: Path) -> None:
    process = started("", tmp_path, program=MISTAKEN)
    process.send_signal(TERM)
    code, _, err = ended(process)
    assert (code, err.splitlines()[0]) == (143, "error: interrupted")
    code, _, err = ended(started("", tmp_path, program=MISTAKEN))
    assert (code, err.splitlines()[0]) == (3, "error: of a library")


# -- a hundred moments of a start ----------------------------------------------------------


def signalled_at(moments: list[float], command: list[str], folder: Path) -> None:
    """Start a command again and again, and send it a signal at each of some moments, seconds."""
    rng = random.Random(7)
    trials = [(moment, rng.choice([INT, TERM, HUP])) for moment in moments]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda trial: problem_of(*trial, command, folder), trials))
    assert [one for one in found if one not in (None, EARLY)] == []
    # One start may be quicker than another; most are there when their signal comes.
    assert found.count(EARLY) <= len(found) // 3


#: A command that had ended well before its signal.
EARLY = "early"


def problem_of(moment: float, signum: int, command: list[str], folder: Path) -> str | None:
    """What is wrong with the end of a command that got a signal some seconds after its start."""
    process = subprocess.Popen(
        [*BC2, *command], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "BC2_HOME": str(folder / "home")},
        preexec_fn=lambda: ignore([]),
    )  # fmt: skip
    time.sleep(moment)
    if process.poll() is not None:
        out, err = process.communicate()
        well = process.returncode == 0 and out and not err
        return EARLY if well else f"{moment:.2f} s: ended before that: {out}{err}"
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    try:
        out, err = process.communicate(timeout=SOON_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{moment:.2f} s: goes on after {signum!r}"
    alive = psutil.wait_procs(family, timeout=5)[1]
    # The interpreter's own start, before it comes to bc2, is the system's and Python's.
    unborn = not err and process.returncode == -signum
    unborn = unborn or (signum == INT and err.endswith("KeyboardInterrupt\n") and "bc2/" not in err)
    right = process.returncode == 128 + signum and "Traceback" not in err
    if alive or not (unborn or right or (process.returncode == 0 and out)):
        return f"{moment:.2f} s, {signum!r}: {process.returncode}, {alive}\n{err}"
    return None


def seconds_of(command: list[str], folder: Path) -> float:
    began = time.monotonic()
    subprocess.run(
        [*BC2, *command], cwd=folder, check=True, capture_output=True,
        env={**os.environ, "BC2_HOME": str(folder / "home")},
    )  # fmt: skip
    return time.monotonic() - began


def spread(count: int, seconds: float) -> list[float]:
    return [seconds * (number + 0.5) / count for number in range(count)]


SHOW = ["recipe", "show", "small.toml"]
TRAIN = ["pretrain", "small.toml", "--fresh", "--set", "pretrain.length=100000 steps"]

#: By then a run makes steps on an idle machine, seconds; it has so many that it never ends.
TRAINS_S = 6.0


@pytest.mark.parametrize(
    ("shows", "trains"), [(16, 3), pytest.param(80, 20, marks=pytest.mark.slow)]
)
def test_a_signal_at_every_moment_of_a_start(small: Path, shows: int, trains: int) -> None:
    """A hundred moments: of a command that is soon there, and of one that imports torch."""
    signalled_at(spread(shows, 0.8 * seconds_of(SHOW, small)), SHOW, small)
    signalled_at(spread(trains, TRAINS_S), TRAIN, small)
    assert not [path for path in (small / "home" / "staging").glob("*") if owner_lives(path)]


def owner_lives(staged: Path) -> bool:
    from bc2.files import lock_directory

    with lock_directory(staged) as free:
        return not free


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_signal_at_a_hundred_moments_of_a_training_start(small: Path, ranks: str) -> None:
    signalled_at(spread(100, 2 * TRAINS_S), [*TRAIN, "--nproc", ranks], small)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["data", "prep", "small.toml", "--fresh"],
        ["data", "tokenize", "small.toml", "--fresh"],
        ["train-tokenizer", "small.toml", "--fresh"],
        ["plan", "small.toml"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_a_signal_at_a_hundred_moments(small: Path, command: list[str]) -> None:
    signalled_at(spread(100, 0.8 * seconds_of(command, small)), command, small)


TALKS = """
def broken(): raise EOFError
with signals.interrupts(broken):
    for _ in range(3):
        try:
            say("asks")
            time.sleep(60)
        except EOFError:
            say("broke")
time.sleep(60)
"""


def test_each_ctrl_c_has_another_meaning_while_it_is_taken_over(tmp_path: Path) -> None:
    """And afterwards it ends the command again; another signal does so at any time."""
    process = started(TALKS, tmp_path)
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "asks\n"
        process.send_signal(INT)
        assert process.stdout.readline() == "broke\n"
    time.sleep(0.3)
    process.send_signal(INT)
    code, said, _ = ended(process)
    assert (code, said) == (128 + INT, ["interrupted"])
    other = started(TALKS, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "asks\n"
    other.send_signal(TERM)
    code, said, _ = ended(other)
    assert (code, said) == (128 + TERM, ["interrupted"])
