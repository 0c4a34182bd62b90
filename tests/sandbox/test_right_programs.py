"""Programs that are right, in ways that two processes might spoil: all pass."""

from __future__ import annotations

import pytest

from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Outcome, Program, Sandbox

PROGRAMS = {
    "plain": ("def f(x): return x + 1", "assert f(1) == 2"),
    "check": (
"""
def f(x):
    return x
""",
"""
def check(candidate):
    assert candidate(1) == 1
check(f)
""",
    ),
    "keywords": ("def f(*a, **k): return a, k", "assert f(1, b=2) == ((1,), {'b': 2})"),
    "in place": (
"""
def f(x): x.sort()
""",
"""
a = [3, 1]
b = a
assert f(a) is None
assert b == [1, 3]
""",
    ),
    "deep in place": (
"""
def f(d): d['a'][0].append(9)
""",
"""
inner = [1]
d = {'a': [inner]}
f(d)
assert inner == [1, 9] and d == {'a': [[1, 9]]}
""",
    ),
    "builtin exception": (
"""
def f(x): raise KeyError(x)
""",
"""
try:
    f(3)
    assert False
except KeyError as e:
    assert e.args == (3,)
""",
    ),
    "own exception": (
"""
class E(ValueError): pass
def f(): raise E('why')
""",
"""
try:
    f()
except E as e:
    assert str(e) == 'why'
else:
    assert False
try:
    f()
except ValueError:
    pass
""",
    ),
    "library exception": (
"""
import json
def f(s): return json.loads(s)
""",
"""
import json
try:
    f('{')
    assert False
except json.JSONDecodeError:
    pass
""",
    ),
    "class": (
"""
class P:
    k = 3
    def __init__(self, x): self.x = x
    def twice(self): return 2 * self.x
def f(ps): return max(p.x for p in ps)
""",
"""
p = P(4)
assert p.twice() == 8 and p.x == 4 and P.k == 3
p.x = 5
assert f([p, P(1)]) == 5 and isinstance(p, P)
""",
    ),
    "linked": (
"""
class N:
    def __init__(self, v): self.v, self.next = v, None
def f(n): return 1 + f(n.next) if n else 0
""",
"""
a = N(1)
a.next = N(2)
assert f(a) == 2 and a.next.v == 2 and a.next.next is None
""",
    ),
    "equal objects": (
"""
from dataclasses import dataclass
@dataclass
class P:
    x: int
def f(): return P(1)
""",
"""
assert f() == P(1) and f() != P(2)
""",
    ),
    "generator": (
"""
def f(n):
    for i in range(n): yield i
""",
"""
assert list(f(3)) == [0, 1, 2] and 1 in f(3)
g = f(1)
assert next(g) == 0
assert next(g, None) is None
assert sum(map(lambda x: x, f(4))) == 6
""",
    ),
    "callback": (
"""
def f(g, xs): return [g(x, y=1) for x in xs]
""",
"""
assert f(lambda x, y: x + y, [1, 2]) == [2, 3]
assert f(lambda x, y: f(lambda a, y: a, [x]), [1]) == [[1]]
""",
    ),
    "function for an answer": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
    "containers": (
"""
from collections import *
N = namedtuple('N', 'a b')
def f():
    some = [Counter('aab'), OrderedDict(a=1), deque([1])]
    return some + [N(1, 2), {1, 2}, frozenset([1])]
""",
"""
from collections import deque
assert f() == [{'a': 2, 'b': 1}, {'a': 1}, deque([1]), (1, 2), {1, 2}, frozenset([1])]
""",
    ),
    "numbers": (
"""
import decimal, fractions, enum
class E(enum.IntEnum):
    A = 3
def f():
    exact = [decimal.Decimal('0.1'), fractions.Fraction(1, 3)]
    return [10**3000, -0.0, float('inf'), 1j, *exact, E.A, True]
""",
"""
import decimal, fractions
r = f()
assert r[0] == 10**3000 and str(r[1]) == '-0.0'
assert r[2] > 1e308 and r[3] == 1j
assert r[4:7] == [decimal.Decimal('0.1'), fractions.Fraction(1, 3), 3] and r[7] is True
""",
    ),
    "text": (
"""
def f(s): return s[::-1], s.encode('utf-16')
""",
"""
assert f('añ中😀')[0] == '😀中ña'
assert isinstance(f('a')[1], bytes)
""",
    ),
    "dates": (
"""
from datetime import *
def f(d): return d + timedelta(days=1)
""",
"""
from datetime import *
assert f(date(2024, 2, 28)) == date(2024, 2, 29)
""",
    ),
    "modules": (
"""
import math
import math as m
def f(): return math.pi
""",
"""
assert f() == math.pi == m.pi
""",
    ),
    "types": ("def f(x): return type(x)", "assert f(1) is int and f([]) == list"),
    "exit unused": (
"""
def f(): return 1
if __name__ == '__main__':
    exit(f())
""",
"""
assert f() == 1
""",
    ),
    "threads": (
"""
from concurrent.futures import ThreadPoolExecutor
def f():
    with ThreadPoolExecutor(4) as t: return list(t.map(abs, range(4)))
""",
"""
assert f() == [0, 1, 2, 3]
""",
    ),
    "asyncio": (
"""
import asyncio
async def g(): return 1
def f(): return asyncio.run(g())
""",
"""
assert f() == 1
""",
    ),
    "own file": (
"""
import tempfile
def f():
    with open('a.txt', 'w') as s: s.write('hi')
    with tempfile.NamedTemporaryFile() as t: t.write(b'x')
    return open('a.txt').read()
""",
"""
assert f() == 'hi'
""",
    ),
    "sqlite": (
"""
import sqlite3
def f():
    c = sqlite3.connect('d.db')
    c.execute('create table t (a)')
    c.execute('insert into t values (1)')
    c.commit()
    return c.execute('select a from t').fetchall()
""",
"""
assert f() == [(1,)]
""",
    ),
    "signals": (
"""
import signal
def f():
    got = []
    signal.signal(signal.SIGUSR1, lambda *a: got.append(1))
    signal.raise_signal(signal.SIGUSR1)
    return got
""",
"""
assert f() == [1]
""",
    ),
    "standard input": (
"""
def f():
    try: input()
    except EOFError: return 1
""",
"""
assert f() == 1
""",
    ),
    "many calls": ("def f(x): return x", "for i in range(5000): assert f(i) == i"),
    "large": (
"""
def f(x): return x
""",
"""
x = list(range(200_000))
assert f(x) == x
""",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(sandbox: Sandbox) -> dict[str, Outcome]:
    programs = [Program(*sources) for sources in PROGRAMS.values()]
    return dict(zip(PROGRAMS, sandbox.run_all(programs, workers=4), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_passes(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].detail == ""
    assert outcomes[name].passed


def test_installed_packages_are_there(sandbox: Sandbox) -> None:
    numpy = sandbox.run("import numpy as np\ndef f(x): return np.cumsum(x)", "f([1])")
    if "ModuleNotFoundError" in numpy.detail:
        pytest.skip("this user's Python has no numpy")
    tests = "assert f([1, 2]).tolist() == [1, 3] and np.allclose(f([1, 2]), [1, 3])"
    assert sandbox.run("import numpy as np\ndef f(x): return np.cumsum(x)", tests).detail == ""
    assert sandbox.run(
        "import numpy as np\ndef f(x): return np.max(x)", "assert f([1, 2]) == 2"
    ).passed


def test_output_is_kept_but_judges_nothing(sandbox: Sandbox) -> None:
    source = "import sys\nprint('hello')\ndef f(): print('at work', file=sys.stderr)"
    outcome = sandbox.run(source, "f()")
    assert outcome.passed
    assert outcome.output == "hello\nat work\n"


def test_what_fails_is_told(sandbox: Sandbox) -> None:
    assert sandbox.run("def f(): return 1", "x = 3\nassert f() == x").detail == (
        "AssertionError: assert f() == x"
    )
    assert sandbox.run("def f(): return g()", "f()").detail == (
        "NameError: name 'g' is not defined"
    )
    assert sandbox.run("f = ", "f()").detail.startswith("SyntaxError")
    assert sandbox.run("import nothing_such", "f()").detail.startswith("ModuleNotFoundError")
    assert (
        sandbox.run("def f(): raise ValueError('x' * 10_000)", "f()").detail[:11] == "ValueError:"
    )
    long = sandbox.run("def f(): raise ValueError('x' * 10_000)", "f()", Limits())
    assert len(long.detail) <= 500
