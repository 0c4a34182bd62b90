"""What two processes that do not trust each other tell each other: plain data, as JSON.

A value of a type that is listed here arrives as a copy. Any other object stays where it is
and its number is sent; what the receiver makes of that is its own business.
"""

from __future__ import annotations

import base64
import builtins
import collections
import datetime
import decimal
import fractions
import json
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

#: A longer message is an attack or a mistake, bytes.
LONGEST = 64 << 20

_BIG = 1 << 63
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}
_DATES = ("date", "time", "datetime")
_DICTS: dict[type, str] = {
    collections.Counter: "Counter",
    collections.OrderedDict: "OrderedDict",
    collections.defaultdict: "defaultdict",
}
_LISTS: dict[type, str] = {
    list: "list",
    tuple: "tuple",
    set: "set",
    frozenset: "frozenset",
    collections.deque: "deque",
}


class BrokenWire(Exception):
    """The other process talks nonsense."""


class Gone(BrokenWire):
    """The other process is gone."""


def send(wire: socket.socket, message: Any) -> None:
    """Send one message.

    Raises:
        Gone: no one is there.
    """
    data = json.dumps(message).encode()
    try:
        wire.sendall(struct.pack("=Q", len(data)) + data)
    except OSError as error:
        raise Gone("the other process is gone") from error


def receive(wire: socket.socket) -> Any:
    """The next message.

    Raises:
        Gone: no one is there.
        BrokenWire: it is not a message.
    """
    (length,) = struct.unpack("=Q", _exactly(wire, 8))
    if length > LONGEST:
        raise BrokenWire(f"a message of {length} bytes")
    try:
        return json.loads(_exactly(wire, length))
    except (ValueError, RecursionError) as error:
        raise BrokenWire("not a message") from error


def _exactly(wire: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            some = wire.recv(min(length - len(data), 1 << 20))
        except OSError as error:
            raise Gone("the other process is gone") from error
        if not some:
            raise Gone("the other process is gone")
        data += some
    return bytes(data)


def encode(value: Any, stays: Callable[[Any], Any]) -> Any:
    """Value to JSON.

    Args:
        stays: what to send for an object that is no plain data.
    """
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if -_BIG < value < _BIG else ["int", hex(value)]
    if kind in _LISTS:
        return [_LISTS[kind], [encode(item, stays) for item in value]]
    if kind is dict or kind in _DICTS:
        pairs = [[encode(k, stays), encode(v, stays)] for k, v in value.items()]
        return [_DICTS.get(kind, "dict"), pairs]
    return _encode_rare(value, kind, stays)


def _encode_rare(value: Any, kind: type, stays: Callable[[Any], Any]) -> Any:
    if kind in (bytes, bytearray):
        return [kind.__name__, base64.b64encode(value).decode()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is range:
        return ["range", [encode(n, stays) for n in (value.start, value.stop, value.step)]]
    if kind in (decimal.Decimal, fractions.Fraction):
        return [kind.__name__, str(value)]
    if kind in (datetime.date, datetime.time, datetime.datetime):
        return [kind.__name__, value.isoformat()]
    if kind is datetime.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if kind is type and getattr(builtins, getattr(value, "__name__", ""), None) is value:
        return ["builtin", getattr(value, "__name__", "")]
    return _encode_subclass(value, kind, stays)


def _encode_subclass(value: Any, kind: type, stays: Callable[[Any], Any]) -> Any:
    """An int that is an enum, a tuple with names, a numpy number: their plain value."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc":
        flat = [encode(number, stays) for number in value.ravel().tolist()]
        return ["ndarray", value.dtype.str, list(value.shape), flat]
    if numpy is not None and isinstance(value, numpy.generic):
        return encode(value.item(), stays)
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return encode(tuple(value), stays)
    for plain in _PLAIN:
        if isinstance(value, plain):
            return encode(_PLAIN[plain](value), stays)
    return stays(value)


def decode(value: Any, other: Callable[[list[Any]], Any]) -> Any:
    """JSON to value; nothing of what comes is run.

    Args:
        other: makes something of what `encode` gave `stays`.

    Raises:
        BrokenWire: it is not what `encode` makes.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        return _decode_list(value, other)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise BrokenWire(f"not a value: {type(error).__name__}") from error


def _decode_list(value: list[Any], other: Callable[[list[Any]], Any]) -> Any:
    tag, rest = value[0], value[1:]
    if tag in ("list", "tuple", "set", "frozenset", "deque"):
        items = [decode(item, other) for item in rest[0]]
        maker: Any = collections.deque if tag == "deque" else getattr(builtins, tag)
        return items if tag == "list" else maker(items)
    if tag == "dict" or tag in _DICTS.values():
        pairs = {decode(k, other): decode(v, other) for k, v in rest[0]}
        if tag == "dict":
            return pairs
        made: dict[Any, Any] = getattr(collections, tag)()
        made.update(pairs)  # a defaultdict comes without what makes its values
        return made
    if tag == "int":
        return int(rest[0], 16)
    return _decode_rare(tag, rest, value, other)


def _decode_rare(
    tag: str, rest: list[Any], value: list[Any], other: Callable[[list[Any]], Any]
) -> Any:
    if tag in ("bytes", "bytearray"):
        data = base64.b64decode(rest[0])
        return data if tag == "bytes" else bytearray(data)
    if tag == "complex":
        return complex(rest[0], rest[1])
    if tag == "range":
        return range(*[decode(n, other) for n in rest[0]])
    if tag == "Decimal":
        return decimal.Decimal(rest[0])
    if tag == "Fraction":
        return fractions.Fraction(rest[0])
    if tag in _DATES:
        return getattr(datetime, tag).fromisoformat(rest[0])
    if tag == "timedelta":
        return datetime.timedelta(*rest)
    if tag == "builtin" and isinstance(found := getattr(builtins, rest[0]), type):
        return found
    if tag == "ndarray":
        import numpy

        flat = [decode(number, other) for number in rest[2]]
        return numpy.array(flat, dtype=numpy.dtype(rest[0])).reshape(rest[1])
    return other(value)
