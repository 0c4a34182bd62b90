"""What a task asks and how it counts, as one digest."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bc2.files import sha256_json

if TYPE_CHECKING:
    from lm_eval.api.task import Task

#: Settings that say where a task is from, or that are recorded beside the hash.
_LEFT_OUT = {"num_fewshot", "config_source", "trust_remote_code"}

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def task_hash(task: Task) -> str:
    """Hex SHA-256 of a task's settings and code and of lm-eval's version.

    Prompts, splits, shots' choice, stop texts, filters and metrics are in it. A function counts
    with the text of its whole module, because it may call others there. Rows, the number of shots,
    seeds and paths of files are not in it.
    """
    import lm_eval

    config = task.config
    settings = {field.name: _plain(getattr(config, field.name)) for field in fields(config)}
    kept = {key: value for key, value in settings.items() if key not in _LEFT_OUT}
    own = [_code(type(task))] if _is_python_task(task) else []
    return sha256_json({"lm_eval": lm_eval.__version__, "config": kept, "class": own})


def _is_python_task(task: Task) -> bool:
    """Whether a class of its own makes it, instead of a YAML file alone."""
    from lm_eval.api.task import ConfigurableTask

    from bc2.harness.bound_tasks import BoundTask

    return type(task) not in (ConfigurableTask, BoundTask)


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it; code by its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items() if key not in _LEFT_OUT}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, partial):
        return [_code(value.func), _plain(value.args), _plain(value.keywords)]
    if callable(value):
        return _code(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    return _ADDRESS.sub("", repr(value))


def _code(value: Any) -> list[str]:
    """Name and text of a function or class, with its module's."""
    name = getattr(value, "__qualname__", type(value).__qualname__)
    for source in (inspect.getmodule(value), value):
        try:
            return [name, inspect.getsource(source)]  # type: ignore[arg-type]
        except (TypeError, OSError):  # built in, or made at run time
            continue
    return [name, ""]
