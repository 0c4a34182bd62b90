"""The candidate's process: runs its code, then does what the tests ask of it.

Nothing here is trusted. All that leaves this process are values, exceptions and words on
standard output; none of them can end a test well but a right value.
"""

from __future__ import annotations

import builtins
import copy
import site
import socket
import sys
import types
from typing import Any

from bc2.sandbox.wire import BrokenWire, decode, encode, receive, send

_OPERATIONS: dict[str, Any] = {
    "getattr": getattr, "setattr": setattr, "iter": iter, "next": next, "len": len,
    "str": str, "repr": repr, "bool": bool, "int": int, "float": float,
    "copy": copy.copy, "deepcopy": copy.deepcopy,
    "getitem": lambda o, k: o[k],
    "setitem": lambda o, k, v: o.__setitem__(k, v),
    "equal": lambda a, b: bool(a == b),
    "less": lambda a, b: bool(a < b),
    "isinstance": isinstance,
}  # fmt: skip


class Objects:
    """Objects that stay here, by the number that the tests know them by."""

    def __init__(self, wire: socket.socket):
        self._wire = wire
        self._kept: list[Any] = []
        self._number: dict[int, int] = {}
        self._callbacks: dict[int, Any] = {}

    def encode(self, value: Any) -> Any:
        return encode(value, self._stays)

    def decode(self, value: Any) -> Any:
        return decode(value, self._other)

    def _stays(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        callback = getattr(value, "_callback_number", None)
        if isinstance(callback, int):
            return ["callback", callback]
        if id(value) not in self._number:
            self._number[id(value)] = len(self._kept)
            self._kept.append(value)
        number = self._number[id(value)]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["exception", number, value.__module__, value.__name__, _built_in(value)]
        return ["object", number]

    def _other(self, value: list[Any]) -> Any:
        if value[0] == "object":
            return self._kept[value[1]]
        if value[0] == "exception":
            return self._kept[value[1]]
        number = value[1]
        if number not in self._callbacks:
            self._callbacks[number] = self._callback(number)
        return self._callbacks[number]

    def _callback(self, number: int) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            send(self._wire, ["callback", number, self.encode(args), self.encode(kwargs)])
            return self.decode(self.serve())

        call.__dict__["_callback_number"] = number
        return call

    def serve(self) -> Any:
        """Do what is asked, until an answer to a question of ours comes; that is returned."""
        while True:
            message = receive(self._wire)
            if message[0] == "answer":
                return message[1]
            if message[0] == "refused":
                raise RuntimeError(message[1])
            send(self._wire, self._done(message))

    def _done(self, message: list[Any]) -> list[Any]:
        operation, args, kwargs = message
        try:
            given: list[Any] = self.decode(args)
            named: dict[str, Any] = self.decode(kwargs)
            if operation == "call":
                result = given[0](*given[1:], **named)
                return ["value", self.encode(result), self._changed(args[1], given)]
            return ["value", self.encode(_OPERATIONS[operation](*given)), []]
        except BrokenWire:
            raise
        except BaseException as error:
            return self.raised(error)

    def _changed(self, before: list[Any], after: list[Any]) -> list[Any]:
        """Arguments that the call changed in place: position and new value."""
        found = []
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if isinstance(new, (list, dict, set, bytearray)) and self.encode(new) != old:
                found.append([index, self.encode(new)])
        return found

    def raised(self, error: BaseException) -> list[Any]:
        """What to tell about an exception."""
        try:
            args, text = self.encode(error.args), str(error)[:500]
        except Exception:
            args, text = ["tuple", []], ""
        return ["raised", self._stays(type(error)), args, text]


def _built_in(kind: type) -> str:
    for base in kind.__mro__:
        name: str = base.__name__
        if getattr(builtins, name, None) is base:
            return name
    return "Exception"


def run_candidate(source: str, wire: socket.socket) -> None:
    """Run the code, tell its names, serve until the tests end.

    As in the benchmarks' own runners `__name__` is not ``"__main__"``.
    """
    sys.argv = ["candidate"]
    site.setquit()  # exit and quit, as in any Python that was started without -S
    objects = Objects(wire)
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(source, "<candidate>", "exec"), module.__dict__)
        names = {n: objects.encode(v) for n, v in module.__dict__.items() if n[:2] != "__"}
        message = ["names", names]
    except BaseException as error:
        message = objects.raised(error)
    send(wire, message)
    objects.serve()
