"""Several suites of one model: found, made anew, or said why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import RunFailed, UsageError
from bc2.evaluate.evaluation import EvalRequest, Evaluation
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.suite_prompts import SuiteRows
from bc2.harness.suites import suite_of
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.usefixtures("own_cache")


def rows_of(releases: Path, *suites: str) -> list[SuiteRows]:
    return [SuiteRows.open(suite_of(suite), releases) for suite in suites]


def evaluated(
    registry: Registry, holder: ModelHolder, releases: Path, *suites: str, **request: Any
) -> tuple[list[Artifact], Evaluation]:
    evaluation = Evaluation(Session(registry), holder, EvalRequest(**request), releases)
    return list(evaluation.evaluate(rows_of(releases, *suites))), evaluation


def test_a_suite_without_a_score_keeps_no_other_from_being_evaluated(
    registry: Registry, holder: ModelHolder, releases: Path
) -> None:
    """The model says nothing of the form that GSM8K wants: that is no score of 0."""
    found, evaluation = evaluated(registry, holder, releases, "gsm8k", "medqa", "jecqa")
    assert [one.manifest.facts["suite"] for one in found] == ["medqa", "jecqa"]
    (error,) = evaluation.failed
    assert isinstance(error, RunFailed)
    assert "found an answer in none of 10 samples" in error.what
    assert len(registry.list("scores")) == 2
    assert len(evaluation.session.built) == 2


def test_a_suite_that_cannot_be_asked_so_keeps_no_other_either(
    registry: Registry, holder: ModelHolder, releases: Path
) -> None:
    found, evaluation = evaluated(registry, holder, releases, "humaneval", "medqa", shots=3)
    assert [one.manifest.facts["suite"] for one in found] == ["medqa"]
    (error,) = evaluation.failed
    assert isinstance(error, UsageError)
    assert "is a task without shots, 3 were asked for" in error.what


def test_prompts_are_kept_for_all_homes(
    registry: Registry, holder: ModelHolder, releases: Path, own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    evaluated(registry, holder, releases, "medqa")
    (kept,) = (own_cache / "prompts").iterdir()
    assert sorted(one.name for one in kept.glob("*.*")) == ["bc2_medqa-5.parquet", "suite.json"]
    assert not (registry.home / "cache").exists()
    # The next checkpoint needs nothing of lm-eval to be answered.
    monkeypatch.setattr("bc2.evaluate.prompt_builder.build_prompts", None)
    evaluated(registry, holder, releases, "medqa", samples=2)


def changed_release(releases: Path, folder: Path) -> Path:
    shutil.copytree(releases / "medagents", folder / "medagents")
    path = folder / "medagents/data/medqa_5options/test.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[-1]) | {"question": "What is 1 and 1?"}
    path.write_text("".join(lines[:-1]) + json.dumps(row) + "\n")
    return folder


def test_changed_rows_are_evaluated_anew_and_said_once(
    registry: Registry, holder: ModelHolder, releases: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    changed = changed_release(releases, tmp_path / "changed")

    def said(folder: Path, **request: Any) -> tuple[str, str]:
        capsys.readouterr()
        (found,), _ = evaluated(registry, holder, folder, "medqa", **request)
        err = " ".join(capsys.readouterr().err.split())
        return found.ref, "evaluating anew" if "evaluating anew" in err else "found" if (
            "is registered already" in err
        ) else "made"

    first, told = said(releases)
    assert told == "made"
    other, told = said(changed)
    assert told == "evaluating anew"
    assert other != first
    assert said(changed) == (other, "found")
    assert said(releases) == (first, "found")
    assert said(changed, limit=2)[1] == "made", "of other settings nothing is known"


def test_settings_of_a_request(releases: Path) -> None:
    (rows,) = rows_of(releases, "gsm8k")
    own = EvalRequest().settings(rows)
    assert (own.shots, own.limit, own.seed, own.precision) == (4, None, 1234, "fp32")
    asked = EvalRequest(shots=0, limit=3, seed=1, samples=2, temperature=0.5, precision="bf16")
    assert asked.settings(rows).model_dump(include={"shots", "limit", "precision", "samples"}) == {
        "shots": 0, "limit": 3, "precision": "bf16", "samples": 2,
    }  # fmt: skip
    assert own.data == rows.digest(4)


def test_what_draws_nothing_is_not_keyed_by_how_it_draws(releases: Path) -> None:
    choices, texts = rows_of(releases, "medqa", "gsm8k")
    plain, drawn = EvalRequest(), EvalRequest(samples=4, temperature=0.7)
    assert drawn.settings(choices) == plain.settings(choices)
    settings = drawn.settings(texts)
    assert (settings.samples, settings.temperature) == (4, 0.7)
