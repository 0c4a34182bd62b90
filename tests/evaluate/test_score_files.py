"""Scores of several suites in a file that a person names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import UsageError
from bc2.evaluate.score_files import check_out, lm_eval_results, write_out
from bc2.evaluate.scores import RESULTS
from bc2.evaluate.summary import Summary
from bc2.registry import Draft, Registry


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scores.txt", r"--out ends in \.txt.*end it in \.json, \.csv, \.md"),
        ("scores", "--out ends in nothing"),
        ("none/scores.json", "no such directory"),
        ("folder.json", "--out is a directory"),
    ],
)
def test_names_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=message) as info:
        check_out(tmp_path / name)
    assert str(tmp_path) in str(info.value.where)


def test_names_that_can(tmp_path: Path) -> None:
    check_out(None)
    for name in ("a.json", "a.csv", "a.md"):
        check_out(tmp_path / name)
        (tmp_path / name).write_text("older")
        check_out(tmp_path / name)


def scores(registry: Registry, suite: str, **results: Any) -> Any:
    with registry.stage(Draft("scores", f"m-{suite}", "0" * 63 + str(len(suite)))) as staged:
        made = {"results": {suite: {"acc,none": 0.5}}, "configs": {suite: {}}, **results}
        (staged.path / RESULTS).write_text(json.dumps(made))
        return staged.publish(facts={"suite": suite})


def test_results_of_several_suites_are_one_file_of_lm_eval(registry: Registry) -> None:
    one = scores(registry, "cmmlu", groups={"cmmlu": {"acc,none": 0.5}}, model_name="m", date=None)
    two = scores(registry, "gsm8k", model_name="m", date=None)
    merged = lm_eval_results([one, two])
    assert set(merged["results"]) == set(merged["configs"]) == {"cmmlu", "gsm8k"}
    assert merged["groups"] == {"cmmlu": {"acc,none": 0.5}}
    assert merged["model_name"] == "m"
    assert merged["date"] == lm_eval_results([two])["date"]


SUMMARIES = [
    Summary(
        suite=suite,
        subject=None,
        metric="acc,none",
        score=0.5,
        stderr=0.1,
        interval=None,
        level=0.95,
        chance=0.25,
        label="",
        mean_of="samples",
        clusters=0,
        percent=True,
        shots=5,
        samples=4,
        cut=0,
        at_limit=0,
        not_extracted=None,
        others={},
    )
    for suite in ("cmmlu", "gsm8k")
]


def test_each_ending_has_its_form(registry: Registry, tmp_path: Path) -> None:
    found = [scores(registry, "cmmlu"), scores(registry, "gsm8k")]
    for ending in ("json", "csv", "md"):
        write_out(tmp_path / f"a.{ending}", found, SUMMARIES)
    merged = json.loads((tmp_path / "a.json").read_bytes())
    assert set(merged["results"]) == {"cmmlu", "gsm8k"}
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [row["suite"] for row in rows] == ["cmmlu", "gsm8k"]
    table = (tmp_path / "a.md").read_text()
    assert table.count("| gsm8k") == table.count("| cmmlu") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
