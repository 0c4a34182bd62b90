"""Read the texts of benchmarks, which training data must not hold, from files and lm-eval tasks."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bc2.data.inputs import check_regular, check_utf8_name
from bc2.data.prep.settings import BenchmarkSettings
from bc2.errors import DataError, RecipeError
from bc2.harness.rows import KINDS, field_of, kind_of, read_rows
from bc2.harness.task_index import manager_of
from bc2.streams import first_line


class Item(NamedTuple):
    """One text of a benchmark."""

    benchmark: str
    """The benchmark's name in the recipe."""
    place: str
    """``file:row``. Rows count from 1: data rows of CSV, JSON and Parquet, lines of JSONL."""
    text: str


def benchmark_files(benchmark: BenchmarkSettings) -> list[Path]:
    """The files of a benchmark, sorted.

    Raises:
        DataError: there is no file, or one is of a kind that cannot be read.
    """
    path = os.path.expanduser(benchmark.path)
    found = [path] if os.path.lexists(path) else glob.glob(path, recursive=True)
    files = sorted(Path(name) for name in found if not os.path.isdir(name))
    if not files:
        raise DataError(
            f"benchmark {benchmark.name!r} has no files",
            where=benchmark.path,
            todo="give a file or a glob, such as name/**/*.csv for all CSV files of a folder",
        )
    for file in files:
        check_utf8_name(str(file), where=str(file))
        check_regular(file)
        if kind_of(file.name) not in KINDS:
            raise DataError(
                f"cannot read a benchmark of this kind: {file.name}",
                where=str(file),
                todo=f"give {', '.join(KINDS)} or a glob that picks them",
            )
    return files


def read_benchmark(benchmark: BenchmarkSettings) -> Iterator[Item]:
    """The texts of a benchmark: every field that is not empty, of every row.

    Raises:
        DataError: a file or field is missing, or a row cannot be read.
    """
    for file in benchmark_files(benchmark):
        # with the folder's name: folders such as dev and test may have files of the same name
        name = "/".join(file.parts[-2:])
        for number, row in read_rows(file, benchmark.rows):
            for field in benchmark.fields:
                for text in _texts(field_of(row, field, f"{file}:{number}")):
                    yield Item(benchmark.name, f"{name}:{number}", text)


def read_task(name: str, folder: str | None) -> Iterator[Item]:
    """The questions of an lm-eval task or group: its test and validation documents as prompts.

    A question is the task's `doc_to_text`. If that is an index or a list of choices (as in
    Winogrande), every choice is a text. What all prompts of a task have in common at their
    beginning and end (such as "Question:" and "Answer:") is removed. Otherwise short questions,
    which are searched as a whole, would never be found.

    Args:
        folder: of YAML files that describe further tasks.

    Raises:
        RecipeError: lm-eval has no such task.
        DataError: the task's data cannot be read, or it has no questions.
    """
    manager = manager_of(name, folder, where="corpus.decontaminate.tasks", error=RecipeError)
    with _task_errors(name):
        tasks = manager.load(name)["tasks"]
    items = [item for task in sorted(tasks) for item in _task_items(name, task, tasks[task])]
    if not items:
        raise DataError(
            f"lm-eval's task {name!r} has no questions",
            where="corpus.decontaminate.tasks",
            todo="give a task with a test or validation split, or its files as a benchmark",
        )
    yield from items


def _task_items(name: str, key: str, task: Any) -> Iterator[Item]:
    with _task_errors(name):
        splits = {
            "test": task.test_docs() if task.has_test_docs() else None,
            "validation": task.validation_docs() if task.has_validation_docs() else None,
        }
        asked = [
            (f"{key}/{split}:{number}", doc, task.doc_to_text(doc))
            for split, docs in splits.items()
            for number, doc in enumerate(docs or (), 1)
        ]
        prompts = [prompt for _, _, prompt in asked if isinstance(prompt, str)]
        texts = iter(_without_template(prompts))
        for place, doc, prompt in asked:
            value = next(texts) if isinstance(prompt, str) else task.doc_to_choice(doc)
            yield from (Item(name, place, text) for text in _texts(value))


_common_prefix = os.path.commonprefix  # it compares characters, although it is in os.path

#: Fewest prompts whose common beginning and end count as a template. In fewer prompts it may be
#: chance.
_FEWEST_PROMPTS = 20


def _without_template(prompts: list[str]) -> list[str]:
    """Prompts without their common template.

    That is their common beginning up to the last colon or line break in it, and the whole lines
    at their common end.
    """
    if len(prompts) < _FEWEST_PROMPTS:
        return prompts
    head = re.match(r".*[:：\n]", _common_prefix(prompts), re.DOTALL)
    ends = _common_prefix([prompt[::-1] for prompt in prompts])[::-1]
    tail = re.search(r"\n.*", ends, re.DOTALL)
    first = len(head[0]) if head else 0
    last = len(tail[0]) if tail else 0
    return [prompt[first : len(prompt) - last].strip() or prompt for prompt in prompts]


@contextmanager
def _task_errors(task: str) -> Iterator[None]:
    """Turn any error of lm-eval, or of a task's own code, into a DataError."""
    try:
        yield
    except Exception as error:  # lm-eval, datasets, the hub, a task's own code: no common class
        raise DataError(
            f"cannot read the questions of lm-eval's task {task!r}: {first_line(error)}",
            where="corpus.decontaminate.tasks",
            todo="check the network and the task, or give its files under benchmarks",
        ) from error


def _texts(value: Any) -> Iterator[str]:
    """Every string in a value, however deep, that is not only white space."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
