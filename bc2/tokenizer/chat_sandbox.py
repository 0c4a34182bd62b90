"""Where imported chat templates are rendered: Jinja's sandbox, with limits.

The sandbox keeps a template from Python's insides and from changing what it is given. Here it also
cannot run or grow without end: loops and macros count steps, and what makes text of any length, or
numbers of any size, is refused or measured first. What is not listed here is not there.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from bc2.errors import DataError

#: Limits: characters of a template, of what it makes; turns of its loops and calls of its macros.
MOST_TEMPLATE = 100_000
MOST_TEXT = 8_000_000
MOST_STEPS = 50_000

#: Seconds of a processor for what one conversation is rendered in: steps can be long.
MOST_SECONDS = 5.0

_FILTERS = (
    "capitalize", "count", "default", "d", "dictsort", "first", "int", "items", "join", "last",
    "length", "list", "lower", "map", "reject", "rejectattr", "replace", "reverse", "select",
    "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_TEXT_METHODS = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower",
    "isspace", "isupper", "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rfind",
    "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
)  # fmt: skip

#: Arguments of a call that are Jinja's own.
_OF_JINJA = ("_loop_vars", "_block_vars")

#: What can hold more than it seems to.
_HOLDERS = (str, list, tuple, dict)


class TemplateRefused(SecurityError):
    """A template does what it may not."""


class MessagesDeclined(DataError):
    """A template says itself, with ``raise_exception``, that it has no place for messages."""

    def __init__(self, reason: str):
        super().__init__(
            f"the model's chat template does not take these messages: {reason}",
            todo="give other messages, such as without a system message",
        )
        self.reason = reason


class _Raised(jinja2.TemplateError):
    """What ``raise_exception`` raises in a template."""


class _Generation(Extension):
    """``{% generation %}``, transformers' mark for the assistant's text: here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted(NodeTransformer):
    """Puts a step before each turn of a loop and each call of a macro; joins text measured."""

    def _stepped(self, node: Any) -> Any:
        self.generic_visit(node)
        size = nodes.Const(sum(len(data.data) for data in node.find_all(nodes.TemplateData)))
        step = nodes.Call(nodes.EnvironmentAttribute("step"), [size], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step))
        return node

    visit_For = visit_Macro = visit_CallBlock = _stepped  # noqa: N815

    def visit_Concat(self, node: Any) -> Any:  # noqa: N802
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols],
            optimized=False, cache_size=0, finalize=self.written,
        )  # fmt: skip
        own = {"join": _join, "replace": _replace, "tojson": _tojson}
        listed = {name: self.filters[name] for name in _FILTERS}
        self.filters = {name: self._bounded_filter(f) for name, f in {**listed, **own}.items()}
        known = {name: self.globals[name] for name in ("namespace", "range", "dict")}
        self.globals = {**known, "raise_exception": _raise}
        self.begin()

    def begin(self) -> None:
        """Begin to count anew."""
        self._steps = self._size = 0
        self._begun = time.thread_time()

    def check_time(self) -> None:
        """Raises: TemplateRefused: it takes too long."""
        if time.thread_time() - self._begun > MOST_SECONDS:
            raise TemplateRefused(f"it takes more than {MOST_SECONDS:g} s")

    def _bounded_filter(self, filter_: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that sees first that what it is given can be written, and that there is time."""

        @wraps(filter_)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.check_time()
            _bounded([arg for arg in (*args, *kwargs.values()) if isinstance(arg, _HOLDERS)])
            return filter_(*args, **kwargs)

        return bounded

    def step(self, size: int) -> None:
        """Count a step, which writes text of a size."""
        self._steps += 1
        self._size += size
        if self._steps > MOST_STEPS:
            raise TemplateRefused(f"it takes more than {MOST_STEPS:,} steps")
        self.check_time()
        _measured(self._size)

    def written(self, value: Any) -> Any:
        """Count what an expression writes, also into a variable."""
        if not isinstance(value, jinja2.Undefined):
            value = _text(value)
            self._size += len(value)
            _measured(self._size)
        return value

    def joined(self, *values: Any) -> str:
        """Values as one text."""
        return _joined(map(_text, values))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on numbers; of text and lists only a sum that is not too long."""
        if operator == "+" and _sized(left) and _sized(right):
            _measured(len(left) + len(right))
        elif _sized(left) or _sized(right) or operator == "**":
            raise TemplateRefused(f"it uses {operator!r}")
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, int) and abs(made) > 1 << 63:
            raise TemplateRefused("it makes too large a number")
        return made

    def wrap_str_format(self, value: Any) -> None:
        """None: `str.format` is not among the methods; one field can be of any width."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Only methods of text that cannot make it longer, but for `replace`."""
        if isinstance(obj, str) and attr not in _TEXT_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function; `str.replace` measured."""
        self.check_time()
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str) and getattr(function, "__name__", "") == "replace":
            # In loops and blocks Jinja gives their variables along, for functions that ask for it.
            own = {name: one for name, one in kwargs.items() if name not in _OF_JINJA}
            return _replace(owner, *args, **own)
        return super().call(context, function, *args, **kwargs)


class SandboxedTemplate:
    """A compiled template; may be rendered from many threads.

    Raises:
        DataError: it is no template, or uses what is not allowed.
    """

    def __init__(self, source: str):
        if len(source) > MOST_TEMPLATE:
            raise refused(f"it has more than {MOST_TEMPLATE:,} characters")
        self.source = source
        self._environment = _Sandbox()
        self._lock = threading.Lock()
        try:
            tree = _Counted().visit(self._environment.parse(source))
            self._template = self._environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError) as error:
            raise refused(_reason(error)) from None

    def render(self, messages: Sequence[Mapping[str, str]], **known: Any) -> str:
        """The text that the template makes of messages.

        Raises:
            MessagesDeclined: the template says that it has no place for them.
            DataError: it fails, or does what it may not.
        """
        context = {
            "messages": [dict(message) for message in messages],
            "tools": None, "documents": None, "add_generation_prompt": False, **known,
        }  # fmt: skip
        with self._lock:
            self._environment.begin()
            try:
                parts: list[str] = []
                size = 0
                for part in self._template.generate(context):
                    size += len(part)
                    _measured(size)
                    parts.append(part)
                return "".join(parts)
            except _Raised as error:
                raise MessagesDeclined(_reason(error)) from None
            except Exception as error:  # a template fails with whatever its operators raise
                raise refused(_reason(error)) from None


def refused(why: str) -> DataError:
    """The error for a template that cannot be used."""
    return DataError(
        f"the chat template cannot be used: {why}",
        todo="choose one of the layouts with a name, or mend the template",
    )


def _reason(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return said or type(error).__name__


def _sized(value: Any) -> bool:
    return isinstance(value, (str, list, tuple))


def _measured(size: int) -> None:
    if size > MOST_TEXT:
        raise TemplateRefused(f"it makes more than {MOST_TEXT:,} characters")


def _bounded(value: Any) -> None:
    """See that a value, with all that it holds, is not too long to be written."""
    waiting, size = [value], 0
    while waiting:
        one = waiting.pop()
        size += len(one) if isinstance(one, str) else 16
        _measured(size)
        if isinstance(one, (list, tuple, set, frozenset)):
            waiting.extend(one)
        elif isinstance(one, dict):
            waiting.extend([*one.keys(), *one.values()])


def _text(value: Any) -> str:
    _bounded(value)
    return str(value)


def _joined(parts: Iterable[str], between: str = "") -> str:
    parts = list(parts)
    _measured(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


def _replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    whole = _text(text)
    _measured(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new, -1 if count is None else count)


def _join(values: Any, between: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        raise TemplateRefused("it uses the attribute of 'join'")
    return _joined(map(_text, values), between)


def _tojson(value: Any, indent: int | None = None) -> str:
    """As transformers has it: characters as they are, and nothing escaped for HTML."""
    if indent is not None and not 0 <= indent <= 8:
        raise TemplateRefused("it indents JSON by more than 8")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise _Raised(_text(message))
