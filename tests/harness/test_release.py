"""Releases found and checked: where they are looked for, the same rows from every kind of file."""

from __future__ import annotations

import csv
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_releases
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.errors import DataError, UsageError
from bc2.harness.release import SOURCES, Release, open_release
from bc2.harness.releases import mmlu
from bc2.harness.releases.known import known_releases

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")) / "bench"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made releases of all sources; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    made_releases.write_releases(folder)
    return folder


@pytest.fixture(autouse=True)
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)


#: Of each source: datasets, and the rows of each split.
MADE = {
    "mmlu": (57, {"dev": 285, "test": 114}),
    "cmmlu": (67, {"dev": 335, "test": 134}),
    "ceval": (52, {"dev": 260, "val": 104}),
    "gsm8k": (1, {"train": 10, "test": 10}),
    "humaneval": (1, {"test": 10}),
    "mbpp": (1, {"prompt": 10, "test": 10, "validation": 2, "train": 2}),
    "bbh": (27, {"test": 81}),
    "agieval": (14, {"dev": 70, "test": 56}),
    "jecqa": (2, {"dev": 10, "test": 8}),
    "gaokao": (9, {"dev": 45, "test": 18}),
    "medqa": (1, {"dev": 5, "test": 5}),
    "medmcqa": (1, {"train": 5, "validation": 5}),
}


def counts(release: Release) -> dict[str, int]:
    found: dict[str, int] = {}
    for splits in release.datasets.values():
        for split, rows in splits.items():
            found[split] = found.get(split, 0) + len(rows)
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_read(made: Path, source: str) -> None:
    release = open_release(source, made)
    assert (len(release.datasets), counts(release)) == MADE[source]
    assert release.origin == str(made)
    assert any("another number of rows" in said for said in release.differences)
    for file in release.files:
        assert (made / file.name).stat().st_size == file.size
    assert json.dumps(list(release.datasets.values()))  # plain values alone


@pytest.mark.parametrize("source", ["mmlu", "gsm8k", "medmcqa"])
def test_the_folder_may_be_given_at_any_height(made: Path, source: str) -> None:
    release = open_release(source, made)
    inner = made / release.files[0].name
    while inner.parent.parent != made:
        inner = inner.parent
        if source == "mmlu" and inner.name in ("dev", "test"):
            continue
        assert open_release(source, inner).digest == release.digest


# -- where ---------------------------------------------------------------------------------


def test_the_given_folder_then_the_variable_then_the_cache(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache" / "bench").mkdir(parents=True)
    shutil.copytree(made / "humaneval", tmp_path / "cache" / "bench" / "humaneval")
    shutil.copytree(made / "humaneval", tmp_path / "variable" / "humaneval")
    assert open_release("humaneval", None).origin == str(tmp_path / "cache" / "bench")
    monkeypatch.setenv("BC2_BENCH_DATA", str(tmp_path / "variable"))
    assert open_release("humaneval", None).origin == str(tmp_path / "variable")
    assert open_release("humaneval", made).origin == str(made)
    # What is given must hold it: another place is not taken silently.
    with pytest.raises(DataError, match="no files of GSM8K") as caught:
        open_release("gsm8k", None)
    assert caught.value.where == str(tmp_path / "variable")
    assert "BC2_BENCH_DATA must hold gsm8k/train.jsonl" in str(caught.value.todo)
    with pytest.raises(DataError, match="no such folder"):
        open_release("gsm8k", tmp_path / "none")
    with pytest.raises(DataError, match="a file, not a folder"):
        open_release("gsm8k", made / "gsm8k" / "test.jsonl")


def test_two_places_with_other_rows_are_both_named(made: Path, tmp_path: Path) -> None:
    for copy in ("one", "two"):
        shutil.copytree(made / "gsm8k", tmp_path / copy / "gsm8k")
    release = open_release("gsm8k", tmp_path)
    assert release.digest == open_release("gsm8k", made).digest  # the same rows twice
    test = tmp_path / "two" / "gsm8k" / "test.jsonl"
    test.write_bytes(test.read_bytes().replace(b"Mira", b"Nora"))
    with pytest.raises(DataError, match="several places with different rows") as caught:
        open_release("gsm8k", tmp_path)
    assert f"{tmp_path.name}/one/gsm8k, {tmp_path.name}/two/gsm8k" in caught.value.what


def test_names_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="'cmmul' are known") as caught:
        open_release("cmmul", None)
    assert caught.value.todo == "did you mean 'cmmlu'?"
    with pytest.raises(UsageError, match="no subset 'anatomi'") as caught:
        open_release("cmmlu", None, subsets=["anatomi"])
    assert caught.value.todo == "did you mean 'anatomy'?"


def test_subsets_are_read_alone(made: Path, tmp_path: Path) -> None:
    release = open_release("mmlu", made, subsets=["virology", "anatomy"])
    assert list(release.datasets) == [("cais/mmlu", "anatomy"), ("cais/mmlu", "virology")]
    assert len(release.files) == 4
    shutil.copytree(made / "mmlu", tmp_path / "mmlu")
    for split in ("dev", "test"):
        (tmp_path / f"mmlu/data/{split}/anatomy_{split}.csv").unlink()
    assert len(open_release("mmlu", tmp_path).datasets) == 56
    said = " ".join(open_release("mmlu", tmp_path).differences)
    assert "missing of MMLU's dev and test: cais/mmlu/anatomy" in said
    with pytest.raises(DataError, match="anatomy: test has no file"):
        open_release("mmlu", tmp_path, subsets=["anatomy"])


# -- the same rows from every kind of file -------------------------------------------------


def to_parquet(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def hub_mmlu(release: Release, folder: Path) -> None:
    for (_, subject), splits in release.datasets.items():
        for split, rows in splits.items():
            to_parquet(folder, f"mmlu/{subject}/{split}-00000-of-00001.parquet", rows)


def original_mmlu(release: Release, folder: Path) -> None:
    """Without header, with letters and CRLF."""
    for (_, subject), splits in release.datasets.items():
        for split, rows in splits.items():
            path = folder / f"data/{split}/{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows(
                    [row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in rows
                )
    (folder / "data/val").mkdir()
    (folder / "data/val/anatomy_val.csv").write_text("not looked at")


def hub_gsm8k(release: Release, folder: Path) -> None:
    for split, rows in release.datasets["openai/gsm8k", "main"].items():
        to_parquet(folder, f"gsm8k/main/{split}-00000-of-00002.parquet", rows[:4])
        to_parquet(folder, f"gsm8k/main/{split}-00001-of-00002.parquet", rows[4:])


def hub_humaneval(release: Release, folder: Path) -> None:
    rows = release.datasets["openai/openai_humaneval", None]["test"]
    to_parquet(folder, "x/openai_humaneval/test-00000-of-00001.parquet", rows)


def hub_mbpp(release: Release, folder: Path) -> None:
    for split, rows in release.datasets["google-research-datasets/mbpp", "full"].items():
        # An empty list has no type of its own.
        schema = pa.schema(
            [
                ("task_id", pa.int32()),
                *((name, pa.string()) for name in ("text", "code", "test_setup_code")),
                *((name, pa.list_(pa.string())) for name in ("test_list", "challenge_test_list")),
            ]
        )
        path = folder / f"mbpp/full/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def hub_bbh(release: Release, folder: Path) -> None:
    for (_, task), splits in release.datasets.items():
        to_parquet(folder, f"bbh/{task}/test-00000-of-00001.parquet", splits["test"])


def archived_ceval(release: Release, folder: Path) -> None:
    """The hub's archive: with dev, its explanations, and test without answers."""
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    with zipfile.ZipFile(folder / "ceval-exam.zip", "w") as archive:
        for (_, subject), splits in release.datasets.items():
            for split, more in (("dev", ["explanation"]), ("val", [])):
                rows = [
                    [number, *(row[column] for column in header[1:]), *more]
                    for number, row in enumerate(splits[split])
                ]
                text = made_releases.csv_text([[*header, *more], *rows])
                archive.writestr(f"{split}/{subject}_{split}.csv", "\ufeff" + text)
            archive.writestr(f"test/{subject}_test.csv", "id,question,A,B,C,D\n0,?,1,2,3,4\n")


def unpacked_cmmlu(release: Release, folder: Path) -> None:
    made_releases.write_releases(folder, ["cmmlu"])
    (path,) = folder.rglob("*.zip")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "CMMLU-master" / "data")
    path.unlink()


def original_medqa(release: Release, folder: Path) -> None:
    splits = release.datasets["bc2/medqa", None]
    for name, rows in (("train", splits["dev"] + splits["test"]), ("test", splits["test"])):
        path = folder / f"data_clean/questions/US/{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made_releases.json_lines(rows))


def hub_medmcqa(release: Release, folder: Path) -> None:
    for split, rows in release.datasets["openlifescienceai/medmcqa", None].items():
        to_parquet(folder, f"medmcqa/data/{split}-00000-of-00001.parquet", rows)


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("mmlu", hub_mmlu),
        ("mmlu", original_mmlu),
        ("cmmlu", unpacked_cmmlu),
        ("ceval", archived_ceval),
        ("gsm8k", hub_gsm8k),
        ("humaneval", hub_humaneval),
        ("mbpp", hub_mbpp),
        ("bbh", hub_bbh),
        ("medqa", original_medqa),
        ("medmcqa", hub_medmcqa),
    ],
)
def test_every_form_of_a_release_has_the_same_digest(
    made: Path, tmp_path: Path, source: str, write: Callable[[Release, Path], None]
) -> None:
    expected = open_release(source, made)
    folder = tmp_path / "given"
    folder.mkdir()
    write(expected, folder)
    found = open_release(source, folder)
    assert found.datasets == expected.datasets
    assert found.digest == expected.digest


def test_line_ends_in_fields_do_not_change_the_digest(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "mmlu", tmp_path / "mmlu")
    path = tmp_path / "mmlu/data/test/anatomy_test.csv"
    digests = set()
    for end in ("\n", "\r\n"):
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            rows = [[*mmlu._HEADER], [f"Two{end}lines?", "1", "2", "3", "4", "0"]]
            csv.writer(stream, lineterminator=end).writerows(rows)
        release = open_release("mmlu", tmp_path)
        assert release.datasets["cais/mmlu", "anatomy"]["test"][0]["question"] == f"Two{end}lines?"
        digests.add(release.digest)
    assert len(digests) == 1


# -- real data -----------------------------------------------------------------------------

#: Rows of each source as its authors count them, shots that were rows before included.
REAL = {
    "mmlu": 14_042 + 285,
    "cmmlu": 11_582 + 335,
    "ceval": 1_346,
    "gsm8k": 7_473 + 1_319,
    "humaneval": 164,
    "mbpp": 974,
    "bbh": 6_511,
    "agieval": 4_635 + 70,
    "jecqa": 1_008 + 10,
    "gaokao": 1_503,
    "medqa": 1_273,
    "medmcqa": 2_816,
}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/bench")
@pytest.mark.parametrize("source", SOURCES)
def test_real_releases_are_the_known_ones(source: str) -> None:
    release = open_release(source, DATA)
    assert sum(counts(release).values()) == REAL[source]
    for said in release.differences:
        assert "another number" not in said
        assert "other rows than" not in said
        assert "missing" not in said
    known = json.loads((Path(mmlu.__file__).parent / "known.json").read_text("utf-8"))
    assert release.digest == known[source][0]["digest"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/bench")
def test_of_two_places_the_known_one_is_read() -> None:
    """Of the real C-Eval there are two conversions."""
    release = open_release("ceval", DATA, subsets=["law"])
    assert {Path(file.name).parent.name for file in release.files} == {"val_s_converted"}
    assert "other rows lie in bench/ceval/val_zhtw" in release.differences[-1]
    other = open_release("ceval", DATA / "ceval" / "val_zhtw", subsets=["law"])
    assert other.digest != release.digest
    assert "traditional characters" in other.differences[-1]


def test_every_source_has_a_known_release() -> None:
    assert known_releases().keys() == SOURCES.keys()
