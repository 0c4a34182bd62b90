"""The tests' process: runs the tests against a candidate that lives in another process.

The candidate's code never runs here, so it cannot patch, read, stop or fake anything of the
tests: it sees the arguments of its calls, and all it can do is to answer them. Objects that
are no plain data are reached through a `Remote`.
"""

from __future__ import annotations

import builtins
import importlib
import socket
import sys
import traceback
import types
from typing import Any

from bc2.sandbox.wire import BrokenWire, Gone, decode, encode, receive, send


class CandidateEnded(BaseException):
    """The candidate left, or asked to: no test can go on."""


class CandidateGone(CandidateEnded):
    """The candidate's process ended, or closed its end of the wire."""


class Remote:
    """An object of the candidate.

    It can be called, read, written and iterated. Compared with plain data it is unequal, and
    it has no arithmetic: what the tests expect is never given to the candidate's operators.
    """

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Peer, number: int):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", [self, *args], kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("getattr", [self, name])

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", [self, name, value])

    def __iter__(self) -> Any:
        return Iterating(self._peer.ask("iter", [self]))

    def __next__(self) -> Any:
        return self._peer.ask("next", [self])

    def __len__(self) -> int:
        return self._peer.ask("len", [self])  # type: ignore[no-any-return]

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("getitem", [self, key])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("setitem", [self, key, value])

    def __str__(self) -> str:
        return self._peer.ask("str", [self])  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return self._peer.ask("repr", [self])  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._peer.ask("bool", [self])  # type: ignore[no-any-return]

    def __int__(self) -> int:
        return self._peer.ask("int", [self])  # type: ignore[no-any-return]

    def __float__(self) -> float:
        return self._peer.ask("float", [self])  # type: ignore[no-any-return]

    def __copy__(self) -> Any:
        return self._peer.ask("copy", [self])

    def __deepcopy__(self, memo: Any) -> Any:
        return self._peer.ask("deepcopy", [self])

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._number == other._number or self._peer.ask("equal", [self, other]) is True

    def __lt__(self, other: object) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._peer.ask("less", [self, other]) is True

    def __hash__(self) -> int:
        return hash(self._number)

    def __instancecheck__(self, instance: Any) -> bool:
        return (
            isinstance(instance, Remote) and self._peer.ask("isinstance", [instance, self]) is True
        )


class Iterating:
    """An iterator of the candidate, which Python wants to have `__iter__` give itself."""

    def __init__(self, remote: Any):
        self._remote = remote

    def __iter__(self) -> Iterating:
        return self

    def __next__(self) -> Any:
        return next(self._remote)


class Peer:
    """The way to the candidate."""

    def __init__(self, wire: socket.socket):
        self._wire = wire
        self._callbacks: list[Any] = []
        self._exceptions: dict[int, Any] = {}

    def names(self) -> dict[str, Any]:
        """What the candidate defines, still encoded, once its code has run.

        Raises:
            Exception: the one that its code ended in.
        """
        message = self._receive()
        if message[0] != "names":
            self._raise(message)
        found: dict[str, Any] = message[1]
        return found

    def ask(self, operation: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> Any:
        """Have the candidate do something; the result, or its exception."""
        self._send([operation, self.encode(args), self.encode(kwargs or {})])
        while True:
            message = self._receive()
            if message[0] == "callback":
                self._call_back(message)
                continue
            if message[0] != "value":
                self._raise(message)
            for index, changed in message[2]:
                _change(args[index], self.decode(changed))
            return self.decode(message[1])

    def _call_back(self, message: list[Any]) -> None:
        """A function of the tests, which they passed as an argument, is called."""
        _, number, args, kwargs = message
        try:
            result = self._callbacks[number](*self.decode(args), **self.decode(kwargs))
            self._send(["answer", self.encode(result)])
        except Exception as error:
            self._send(["refused", f"{type(error).__name__}: {error}"])

    def _send(self, message: Any) -> None:
        try:
            send(self._wire, message)
        except Gone as error:
            raise CandidateGone(str(error)) from None

    def _receive(self) -> Any:
        try:
            message = receive(self._wire)
        except Gone as error:
            raise CandidateGone(str(error)) from None
        except BrokenWire as error:
            raise CandidateEnded(str(error)) from None
        if not isinstance(message, list) or not message:
            raise CandidateEnded("not a message")
        return message

    def _raise(self, message: list[Any]) -> None:
        if message[0] != "raised" or len(message) != 4:
            raise CandidateEnded("not a message")
        kind, args, text = self.decode(message[1]), self.decode(message[2]), message[3]
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            name = getattr(kind, "__name__", "BaseException")
            raise CandidateEnded(f"{name}: {text}")
        # Not kind(*args): it may want other arguments than it keeps.
        raise kind.__new__(kind, *args)

    def encode(self, value: Any) -> Any:
        return encode(value, self._stays)

    def decode(self, value: Any) -> Any:
        return decode(value, self._other)

    def _stays(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return ["object", value._number]
        for number, kind in self._exceptions.items():
            if kind is value:
                return ["exception", number]
        if callable(value) and not isinstance(value, type):
            self._callbacks.append(value)
            return ["callback", len(self._callbacks) - 1]
        raise TypeError(f"tests cannot pass a {type(value).__name__} to the candidate")

    def _other(self, value: list[Any]) -> Any:
        if value[0] == "object" and type(value[1]) is int:
            return Remote(self, value[1])
        if value[0] == "callback":
            return self._callbacks[value[1]]
        if value[0] == "module":
            return _standard_module(value[1])
        if value[0] == "exception":
            _, number, module, name, base = value
            if number not in self._exceptions:
                self._exceptions[number] = _exception(module, name, base)
            return self._exceptions[number]
        raise BrokenWire("not a value")


def _change(old: Any, new: Any) -> None:
    """Make an argument what the candidate's copy of it became."""
    if type(old) is not type(new):
        raise CandidateEnded("not a message")
    if isinstance(old, (list, bytearray)):
        if isinstance(old, list):
            new = [_changed(a, b) for a, b in zip(old, new, strict=False)] + new[len(old) :]
        old[:] = new
    elif isinstance(old, dict):
        new = {k: _changed(old[k], v) if k in old else v for k, v in new.items()}
        old.clear()
        old.update(new)
    elif isinstance(old, set):
        old.clear()
        old.update(new)


def _changed(old: Any, new: Any) -> Any:
    """The old object, changed where it can be, so that it stays the same object."""
    if type(old) is type(new) and isinstance(old, (list, dict, set, bytearray)):
        _change(old, new)
        return old
    return new


def _standard_module(name: str) -> types.ModuleType:
    """A module that the candidate imported, imported here from the same place."""
    if name.partition(".")[0] == "candidate":
        raise BrokenWire("not a module")
    return importlib.import_module(name)


def _exception(module: str, name: str, base: str) -> type:
    if module.partition(".")[0] in sys.stdlib_module_names:
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    built_in = getattr(builtins, base)
    if not issubclass(built_in, BaseException):
        raise BrokenWire("not an exception")
    return type(str(name), (built_in,), {})


def judge(tests: str, redefines: list[str], wire: socket.socket) -> dict[str, str]:
    """Run the tests; verdict and detail.

    Args:
        redefines: builtins of which the tests mean the candidate's own.
    """
    try:
        code = compile(tests, "<tests>", "exec")
        peer = Peer(wire)
        offered = peer.names()
        wanted = _names(code) - (set(dir(builtins)) - set(redefines))
        space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
        space |= {name: peer.decode(offered[name]) for name in offered if name in wanted}
        exec(code, space)
    except CandidateGone:
        return {"verdict": "gone", "detail": ""}
    except CandidateEnded as error:
        return {"verdict": "failed", "detail": f"the candidate broke off: {error}"[:500]}
    except BaseException as error:
        return {"verdict": "failed", "detail": _last_line(error, tests)}
    return {"verdict": "passed", "detail": ""}


def _names(code: types.CodeType) -> set[str]:
    """All names that code may look up, in functions too."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _last_line(error: BaseException, tests: str) -> str:
    """What to show of an error: its last line, and for a bare assert the assert itself."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    if isinstance(error, AssertionError) and not text:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<tests>"
        ]
        if lines and lines[-1]:
            text = tests.splitlines()[lines[-1] - 1].strip()
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__
