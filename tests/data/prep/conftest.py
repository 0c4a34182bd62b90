"""Fixtures for tests of stages: run a stage in this process, and make records from texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.data.documents import text_id
from bc2.data.prep.group_by import Groups, Int64, sorted_groups
from bc2.data.prep.part_files import read_part_file, write_part_file
from bc2.data.prep.stages.base import RECORD, Outcome, PrepStage, WorkingSet


class LocalWorkingSet(WorkingSet):
    """A working set in one folder, which does everything in this process."""

    def __init__(self, folder: Path, tables: Sequence[pa.Table], stage: PrepStage):
        self.base = folder
        self.folder = folder / "scratch"
        self.parts = [f"{number:05d}" for number in range(len(tables))]
        self.folder.mkdir(parents=True)
        for name, table in zip(self.parts, tables, strict=True):
            write_part_file(table, self.part(name))
            if stage.needs_all:
                pq.write_table(stage.keys(table), self.keys(name))

    def part(self, name: str) -> Path:
        return self.base / f"part-{name}.arrow"

    def keys(self, name: str) -> Path:
        return self.base / f"keys-{name}.parquet"

    def verdict(self, name: str) -> Path:
        return self.base / f"verdict-{name}.parquet"

    def group(self, paths: Sequence[Path], columns: Sequence[str], without: Int64) -> Groups:
        return sorted_groups(paths, columns, without)

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


RunStage = Callable[[PrepStage, Sequence[pa.Table]], tuple[list[Outcome], dict[str, Any]]]


@pytest.fixture(scope="session")
def run_stage(tmp_path_factory: pytest.TempPathFactory) -> RunStage:
    """``run_stage(stage, tables)``: the outcome of each table (a part), and settle's facts."""

    def run(stage: PrepStage, tables: Sequence[pa.Table]) -> tuple[list[Outcome], dict[str, Any]]:
        work = LocalWorkingSet(tmp_path_factory.mktemp(stage.name), tables, stage)
        facts = stage.settle(work) if stage.needs_all else {}
        outcomes = []
        for name in work.parts:
            verdict = pq.read_table(work.verdict(name)) if stage.needs_all else None
            outcomes.append(stage.apply(read_part_file(work.part(name)), verdict))
        return outcomes, facts

    return run


Records = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def records() -> Records:
    """``records(texts, first=0, lang=None, **columns)``: RECORD, `pos` counting from `first`."""

    def records(
        texts: Sequence[str], first: int = 0, lang: str | None = None, **columns: Any
    ) -> pa.Table:
        count = len(texts)
        table = pa.table(
            {
                "pos": range(first, first + count),
                "id": [text_id(text.encode()) for text in texts],
                "text": texts,
                "source": ["s"] * count,
                "lang": [lang] * count,
                "origin_file": ["file.jsonl"] * count,
                "origin_row": range(first + 1, first + count + 1),
            },
            schema=RECORD,
        )
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        return table

    return records


def _is_cjk(letter: str) -> bool:
    return 0x3000 <= ord(letter) <= 0x9FFF or 0x20000 <= ord(letter) <= 0x3FFFF


@pytest.fixture(scope="session")
def naive_words() -> Callable[[str], list[str]]:
    """The words that near-deduplication compares, found letter by letter in plain Python."""

    def words(text: str) -> list[str]:
        found = [""]
        for letter in unicodedata.normalize("NFKD", text):
            if unicodedata.category(letter)[0] not in "LMN":
                found.append("")
            elif _is_cjk(letter):
                found += [letter, ""]
            else:
                found[-1] += letter.lower()
        return [word for word in found if word]

    return words


Shingles = Callable[[str], set[tuple[str, ...]]]


@pytest.fixture(scope="session")
def naive_shingles(naive_words: Callable[[str], list[str]]) -> Shingles:
    """A text's set of shingles of five words; if it has fewer words, one shingle of all."""

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = naive_words(text)
        windows = range(max(1, len(words) - 4)) if words else ()
        return {tuple(words[i : i + 5]) for i in windows}

    return shingles
