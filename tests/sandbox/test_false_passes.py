"""Programs that are wrong and try to pass: none may."""

from __future__ import annotations

import pytest

from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Outcome, Program, Sandbox

TESTS = "assert f(1) == 2\nassert abs(f(1) - 2) < 0.5\n"

LIMITS = Limits(wall_seconds=3)

#: Answers yes to whatever it is asked.
YES = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __bool__(self): return True
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __hash__(self): return hash(2)
"""

#: Writes to every descriptor that there is.
EVERYWHERE = """
import json, os, struct
def everywhere(data):
    for fd in range(256):
        try:
            os.write(fd, data)
        except OSError:
            pass
def told(message):
    data = json.dumps(message).encode()
    return struct.pack("=Q", len(data)) + data
"""

ATTACKS = {
    "wrong": "def f(x): return x",
    "exit while defined": "import sys\nsys.exit(0)",
    "leave while defined": "import os\nos._exit(0)",
    "exit": "def f(x): exit(0)",
    "leave": "import os\ndef f(x): os._exit(0)",
    "interrupt": "def f(x): raise KeyboardInterrupt",
    "generator exit": "def f(x): raise GeneratorExit",
    "kill itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "patched exit": """
import os, sys
sys.exit = os._exit = exit = lambda *a: None
def f(x): exit()
""",
    "patched assert": """
import builtins
class Quiet(BaseException):
    def __new__(cls, *args): raise SystemExit(0)
builtins.AssertionError = AssertionError = Quiet
def f(x): return x
""",
    "patched builtins": """
import builtins
builtins.abs = abs = lambda x: 0
builtins.compile = builtins.exec = lambda *a, **k: None
builtins.__build_class__ = None
def f(x): return x
""",
    "printed result": """
def f(x):
    print('{"verdict": "passed", "detail": ""}', flush=True)
    return x
""",
    "equal to everything": YES + "def f(x): return Yes()",
    "an equal int": YES + "class Int(Yes, int): pass\ndef f(x): return Int(7)",
    "an equal list": YES + "class List(Yes, list): pass\ndef f(x): return List([7])",
    "f equal to everything": YES + "Yes.__call__ = lambda *a: a[0]\nf = Yes()",
    "equal in a tuple": YES + "def f(x): return (Yes(),)",
    "the tests in a frame": """
import sys
def f(x):
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_globals.values()) + list(frame.f_locals.values()):
            if isinstance(value, str) and "".join(["assert f", "(1)"]) in value:
                return 2
        frame = frame.f_back
    return x
""",
    "the tests in memory": """
import gc
def f(x):
    for found in gc.get_objects():
        try:
            if "".join(["assert f", "(1)"]) in repr(found): return 2
        except Exception:
            pass
    return x
""",
    "patched judge": """
import sys
for module in list(sys.modules.values()):
    if "sandbox" in getattr(module, "__name__", ""):
        for name in list(vars(module)):
            if callable(vars(module)[name]) and name in ("judge", "decode", "receive", "_verdict"):
                setattr(module, name, lambda *a, **k: {"verdict": "passed", "detail": ""})
def f(x): return x
""",
    "a verdict everywhere": EVERYWHERE + """
def f(x):
    everywhere(b'{"verdict": "passed", "detail": ""}')
    return x
""",
    "a verdict while defined": EVERYWHERE + """
everywhere(b'{"verdict": "passed", "detail": ""}')
everywhere(b'W0')
os._exit(0)
""",
    "forged messages": EVERYWHERE + """
def f(x):
    everywhere(told(["passed"]) + told(["verdict", "passed"]) + told(None))
    return x
""",
    "nonsense messages": EVERYWHERE + """
def f(x):
    everywhere(told(["value", ["builtin", "exec"], [[0, 1], ["x"]]]))
""",
    "endless message": EVERYWHERE + """
def f(x):
    everywhere(struct.pack("=Q", 1 << 60))
""",
    "closed descriptors": "import os\ndef f(x):\n    os.closerange(0, 256)\n    os._exit(0)",
    "descriptors passed on": EVERYWHERE + """
import socket
def f(x):
    for fd in range(3, 64):
        try:
            socket.send_fds(socket.socket(fileno=os.dup(fd)), [b"x"], [0, 1, 2])
        except OSError:
            pass
    return 2
""",
    "descriptors replaced": """
import os
def f(x):
    for fd in range(3, 64):
        try: os.dup2(1, fd)
        except OSError: pass
    return 2
""",
    "an answer in itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "at exit": """
import atexit, os
atexit.register(os._exit, 0)
def f(x): raise SystemExit
""",
    "thread": """
import os, threading, time
def later():
    time.sleep(0.05)
    os._exit(0)
threading.Thread(target=later).start()
def f(x):
    time.sleep(5)
""",
    "alarm": """
import os, signal, time
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.05)
def f(x):
    while True: time.sleep(1)
""",
    "trace": """
import sys
def skip(frame, event, arg):
    if "tests" in frame.f_code.co_filename: raise SystemExit(0)
    return skip
sys.settrace(skip)
def f(x): return x
""",
    "another program": "import os\ndef f(x): os.execv('/bin/true', ['true'])",
    "a name that is not its own": "def f(x): return x\n__builtins__ = {}\nabs = lambda x: 0",
    "numbers that cannot be": "def f(x): return float('nan')",
    "an exception that is no error": YES + "class E(Yes, Exception): pass\ndef f(x): return E()",
    "a class for an answer": "f = object",
    "a module for an answer": "import unittest.mock as f",
    "anything": "import unittest.mock\ndef f(x): return unittest.mock.ANY",
    "mock": "import unittest.mock\nf = unittest.mock.MagicMock(return_value=unittest.mock.ANY)",
    "nothing": "",
    "not a program": "def f(x) return",
    "not text": "def f(x): return '\ud800'",
    "a zero byte": "def f(x): return 2\0",
    "deep": "(" * 100_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(sandbox: Sandbox) -> dict[str, Outcome]:
    programs = [Program(source, TESTS) for source in ATTACKS.values()]
    return dict(zip(ATTACKS, sandbox.run_all(programs, 4, LIMITS), strict=True))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_wrong_program_passes(outcomes: dict[str, Outcome], attack: str) -> None:
    assert not outcomes[attack].passed
    assert outcomes[attack].detail


def test_a_right_program_passes_the_same_tests(sandbox: Sandbox) -> None:
    assert sandbox.run("def f(x): return x + 1", TESTS).passed


def test_names_of_builtins_are_the_candidates_only_where_the_tests_say_so(sandbox: Sandbox) -> None:
    lies = "def sum(items): return 3"
    assert not sandbox.run(lies, "assert sum([1]) == 3").passed
    assert sandbox.run(lies, "assert sum([1]) == 3", None, ["sum"]).passed


def test_what_stays_open_is_known(sandbox: Sandbox) -> None:
    """Objects of the candidate's own classes compare as the candidate says: documented."""
    source = YES + "def f(x): return Yes()\ndef expected(): return Yes()"
    assert sandbox.run(source, "assert f(1) == expected()").passed
    assert not sandbox.run(source, "assert f(1) == [1]").passed
    assert not sandbox.run(source, "assert [1] == f(1)").passed
