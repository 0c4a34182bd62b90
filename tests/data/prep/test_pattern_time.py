"""No regular expression below `bc2.data` takes long on any text of its own characters.

The patterns are found by themselves (`found_patterns`), those of pyarrow's ``*_regex`` functions as
well. Those that are made of local variables are not: name a pattern in its module.
"""

from __future__ import annotations

import re
import time

import pytest
from found_patterns import Re2, hostile_texts, modules_below, patterns_of

#: Modules whose patterns are not yet linear.
SLOW: dict[str, str] = {}

#: Seconds a character: one second for a megabyte, which is ten times what such a pattern needs.
LIMIT = 1e-6


def cases():
    for name in modules_below("bc2.data"):
        marks = [pytest.mark.xfail(reason=SLOW[name], strict=True)] if name in SLOW else []
        yield pytest.param(name, marks=marks)


def seconds(pattern, text):
    begun = time.process_time()
    for _ in pattern.finditer(text):
        pass
    return time.process_time() - begun


def best(pattern, text):
    return min(seconds(pattern, text) for _ in range(3))


def slow_text(pattern):
    """A text on which a pattern takes too long for its length, or longer and longer; or None."""
    tried = []
    for text in hostile_texts(pattern, 1200):
        taken = seconds(pattern, text)
        if taken > LIMIT * len(text) and best(pattern, text) > LIMIT * len(text):
            return text
        tried.append((taken, text))
    for _, text in sorted(tried)[-3:]:
        long, longer = text * 9, text * 36
        taken = best(pattern, long)
        if taken > LIMIT * len(long) or best(pattern, longer) > 10 * max(taken, 2e-4):
            return text
    return None


@pytest.mark.parametrize("name", list(cases()))
def test_patterns_take_linear_time(name):
    slow = {where: slow_text(pattern) for where, pattern in patterns_of(name).items()}
    assert not {where: text[:80] for where, text in slow.items() if text is not None}


@pytest.mark.parametrize(
    "pattern",
    [
        r"a*b",
        r"[.!…]+[\s]*X",
        r"(?:[a-z_](?:[a-z_-]*[a-z_])?\.)+[A-Z]",
        r"-----BEGIN (?:[A-Z]+ )*KEY-----[A-Z\s-]*?END",
        r"\+[1-9](?:[ .-]?\(?\d{1,4}\)?){2,7}(?![\w-])",
    ],
)
def test_a_slow_pattern_is_noticed(pattern):
    assert slow_text(re.compile(pattern)) is not None


def test_patterns_are_found():
    found = patterns_of("bc2.data.prep.text.personal.phones")
    assert {"_NANP", "CLUES[_any]"} <= found.keys()
    assert any(where.startswith("line ") for where in found)
    assert len(patterns_of("bc2.data.prep.text.personal.keys")) == 10
    everywhere = [one for name in modules_below("bc2.data") for one in patterns_of(name).values()]
    assert any(isinstance(one, Re2) for one in everywhere)
    assert len(everywhere) > 50
