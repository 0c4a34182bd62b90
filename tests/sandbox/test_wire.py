from __future__ import annotations

import json
import socket
from collections import Counter, OrderedDict, defaultdict, deque
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.sandbox.wire import BrokenWire, Gone, decode, encode, receive, send


def nothing_stays(value: Any) -> Any:
    raise AssertionError(f"{value!r} is plain data")


def nothing_else(value: list[Any]) -> Any:
    raise BrokenWire("not plain data")


keys = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary(),
    st.complex_numbers(allow_nan=False), st.decimals(allow_nan=False), st.fractions(),
    st.dates(), st.times(), st.datetimes(), st.timedeltas(),
    st.sampled_from([int, str, list, ValueError.__mro__[-1]]),
    st.builds(range, st.integers(-9, 9), st.integers(), st.integers(1, 3)),
)  # fmt: skip
values = st.recursive(
    keys,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.lists(inner).map(deque),
        st.sets(keys),
        st.frozensets(keys),
        st.dictionaries(keys, inner),
        st.dictionaries(keys, inner).map(OrderedDict),
        st.lists(keys).map(Counter),
        st.dictionaries(keys, inner).map(lambda d: defaultdict(None, d)),
        st.binary().map(bytearray),
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(values)
def test_plain_data_arrives_as_it_is(value: Any) -> None:
    sent = json.loads(json.dumps(encode(value, nothing_stays)))
    come = decode(sent, nothing_else)
    assert type(come) is type(value)
    assert come == value


tags = ["int", "list", "tuple", "set", "dict", "Counter", "bytes", "complex", "range", "Decimal",
        "Fraction", "date", "timedelta", "builtin", "exec", "object"]  # fmt: skip
anything = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=3), st.floats()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(
            lambda tag, rest: [tag, *rest], st.sampled_from(tags), st.lists(inner, max_size=3)
        ),
    ),
    max_leaves=10,
)


@given(anything)
def test_nonsense_is_refused_or_plain(value: Any) -> None:
    with suppress(BrokenWire):
        decode(value, nothing_else)


def test_only_types_come_from_the_builtins() -> None:
    assert decode(["builtin", "int"], nothing_else) is int
    for name in ("eval", "exec", "print", "__import__", "nothing"):
        with pytest.raises(BrokenWire):
            decode(["builtin", name], nothing_else)


def test_messages_arrive_or_are_refused() -> None:
    here, there = socket.socketpair()
    with here, there:
        send(here, [1, "a"])
        assert receive(there) == [1, "a"]
        here.sendall((1 << 40).to_bytes(8, "little"))
        with pytest.raises(BrokenWire, match="bytes"):
            receive(there)
        here.sendall((2).to_bytes(8, "little") + b"[[")
        with pytest.raises(BrokenWire, match="not a message"):
            receive(there)
        here.close()
        with pytest.raises(Gone):
            receive(there)
        with pytest.raises(Gone):
            send(there, 1)
