"""The original files of benchmarks, read plainly: the reference for bc2's own readers."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

Row = dict[str, Any]
Splits = Mapping[str, Sequence[Row]]
#: (path of a dataset on the hub, name of its subset) -> its rows by split.
Source = Callable[[str, str | None], Splits]


def release_files(data: Path) -> Source:
    """Rows of the files below a directory that has each release in a folder of its name."""

    def read(path: str, name: str | None) -> Splits:
        if path == "cais/mmlu":
            folder = data / "mmlu" / "data" / "mmlu"
            return {s: list(_mmlu(folder / s / f"{name}_{s}.csv")) for s in ("dev", "test")}
        if path == "haonan-li/cmmlu":
            folder = data / "cmmlu" / "data"
            return {s: _csv(folder / s / f"{name}.csv") for s in ("dev", "test")}
        if path == "openai/gsm8k":
            return {s: _jsonl(data / "gsm8k" / f"{s}.jsonl") for s in ("train", "test")}
        if path == "openai/openai_humaneval":
            return {"test": _jsonl(data / "humaneval" / "HumanEval.jsonl.gz")}
        raise LookupError(f"no rows of {path} are known here")

    return read


@contextmanager
def rows_from(source: Source) -> Iterator[None]:
    """Let `datasets.load_dataset` return rows of `source`, without the hub."""
    import datasets

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        splits = source(path, name)
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(list(rows)) for split, rows in splits.items()}
        )

    with mock.patch.object(datasets, "load_dataset", load_dataset):
        yield


def _mmlu(path: Path) -> Iterator[Row]:
    for row in _csv(path):
        choices = [row[f"choice{n}"] for n in range(4)]
        yield {"question": row["question"], "choices": choices, "answer": int(row["answer"])}


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _jsonl(path: Path) -> list[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]
