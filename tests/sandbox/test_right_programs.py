"""Programs that are right, in ways that two processes might spoil: all pass."""

from __future__ import annotations

import pytest

from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Outcome, Program, Sandbox

PROGRAMS = {
    "plain": ("def f(x): return x + 1", "assert f(1) == 2"),
    "check": ("def f(x):\n    return x", "def check(candidate):\n    assert candidate(1) == 1\ncheck(f)"),
    "keywords": ("def f(*a, **k): return a, k", "assert f(1, b=2) == ((1,), {'b': 2})"),
    "in place": ("def f(x): x.sort()", "a = [3, 1]\nb = a\nassert f(a) is None\nassert b == [1, 3]"),
    "deep in place": (
        "def f(d): d['a'][0].append(9)",
        "inner = [1]\nd = {'a': [inner]}\nf(d)\nassert inner == [1, 9] and d == {'a': [[1, 9]]}",
    ),
    "builtin exception": (
        "def f(x): raise KeyError(x)",
        "try:\n    f(3)\n    assert False\nexcept KeyError as e:\n    assert e.args == (3,)",
    ),
    "own exception": (
        "class E(ValueError): pass\ndef f(): raise E('why')",
        "try:\n    f()\nexcept E as e:\n    assert str(e) == 'why'\nelse:\n    assert False\n"
        "try:\n    f()\nexcept ValueError:\n    pass",
    ),
    "library exception": (
        "import json\ndef f(s): return json.loads(s)",
        "import json\ntry:\n    f('{')\n    assert False\nexcept json.JSONDecodeError:\n    pass",
    ),
    "class": (
        "class P:\n    k = 3\n    def __init__(self, x): self.x = x\n    def twice(self): return 2 * self.x\n"
        "def f(ps): return max(p.x for p in ps)",
        "p = P(4)\nassert p.twice() == 8 and p.x == 4 and P.k == 3\np.x = 5\n"
        "assert f([p, P(1)]) == 5 and isinstance(p, P)",
    ),
    "linked": (
        "class N:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def f(n): return 1 + f(n.next) if n else 0",
        "a = N(1)\na.next = N(2)\nassert f(a) == 2 and a.next.v == 2 and a.next.next is None",
    ),
    "equal objects": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(1)",
        "assert f() == P(1) and f() != P(2)",
    ),
    "generator": (
        "def f(n):\n    for i in range(n): yield i",
        "assert list(f(3)) == [0, 1, 2] and 1 in f(3)\ng = f(1)\nassert next(g) == 0\n"
        "assert next(g, None) is None\nassert sum(map(lambda x: x, f(4))) == 6",
    ),
    "callback": (
        "def f(g, xs): return [g(x, y=1) for x in xs]",
        "assert f(lambda x, y: x + y, [1, 2]) == [2, 3]\nassert f(lambda x, y: f(lambda a, y: a, [x]), [1]) == [[1]]",
    ),
    "function for an answer": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
    "containers": (
        "from collections import *\nN = namedtuple('N', 'a b')\n"
        "def f(): return [Counter('aab'), OrderedDict(a=1), deque([1]), N(1, 2), {1, 2}, frozenset([1])]",
        "assert f() == [{'a': 2, 'b': 1}, {'a': 1}, __import__('collections').deque([1]), (1, 2), {1, 2}, frozenset([1])]",
    ),
    "numbers": (
        "import decimal, fractions, enum\nclass E(enum.IntEnum):\n    A = 3\n"
        "def f(): return [10**3000, -0.0, float('inf'), 1j, decimal.Decimal('0.1'), fractions.Fraction(1, 3), E.A, True]",
        "import decimal, fractions\nr = f()\nassert r[0] == 10**3000 and str(r[1]) == '-0.0' and r[2] > 1e308 and r[3] == 1j\n"
        "assert r[4:7] == [decimal.Decimal('0.1'), fractions.Fraction(1, 3), 3] and r[7] is True",
    ),
    "text": ("def f(s): return s[::-1], s.encode('utf-16')", "assert f('añ中😀')[0] == '😀中ña'\nassert isinstance(f('a')[1], bytes)"),
    "dates": (
        "from datetime import *\ndef f(d): return d + timedelta(days=1)",
        "from datetime import *\nassert f(date(2024, 2, 28)) == date(2024, 2, 29)",
    ),
    "modules": ("import math\nimport math as m\ndef f(): return math.pi", "assert f() == math.pi == m.pi"),
    "types": ("def f(x): return type(x)", "assert f(1) is int and f([]) == list"),
    "exit unused": ("def f(): return 1\nif __name__ == '__main__':\n    exit(f())", "assert f() == 1"),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def f():\n    with ThreadPoolExecutor(4) as t: return list(t.map(abs, range(4)))",
        "assert f() == [0, 1, 2, 3]",
    ),
    "asyncio": ("import asyncio\nasync def g(): return 1\ndef f(): return asyncio.run(g())", "assert f() == 1"),
    "own file": (
        "import tempfile\ndef f():\n    with open('a.txt', 'w') as s: s.write('hi')\n"
        "    with tempfile.NamedTemporaryFile() as t: t.write(b'x')\n    return open('a.txt').read()",
        "assert f() == 'hi'",
    ),
    "sqlite": (
        "import sqlite3\ndef f():\n    c = sqlite3.connect('d.db')\n    c.execute('create table t (a)')\n"
        "    c.execute('insert into t values (1)')\n    c.commit()\n    return c.execute('select a from t').fetchall()",
        "assert f() == [(1,)]",
    ),
    "signals": (
        "import signal\ndef f():\n    got = []\n    signal.signal(signal.SIGUSR1, lambda *a: got.append(1))\n"
        "    signal.raise_signal(signal.SIGUSR1)\n    return got",
        "assert f() == [1]",
    ),
    "standard input": ("def f():\n    try: input()\n    except EOFError: return 1", "assert f() == 1"),
    "many calls": ("def f(x): return x", "for i in range(5000): assert f(i) == i"),
    "large": ("def f(x): return x", "x = list(range(200_000))\nassert f(x) == x"),
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
