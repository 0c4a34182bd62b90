"""Scores as an artifact: complete, and the same bytes whenever they are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError, IntegrityError
from bc2.evaluate.evaluation import EvalRequest, Evaluation
from bc2.evaluate.model_holder import ModelHolder
from bc2.evaluate.scores import CSV, MARKDOWN, RESULTS, SAMPLES, SCORES, read_summaries, suite_facts
from bc2.evaluate.suite_prompts import SuiteRows
from bc2.evaluate.suite_run import SuiteRun
from bc2.evaluate.tables import scores_csv, scores_json, scores_markdown
from bc2.harness.suites import suite_of
from bc2.harness.task_hash import task_hash
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.usefixtures("own_cache")


def evaluate(
    registry: Registry, holder: ModelHolder, releases: Path, suite: str, *, fresh: bool = False,
    **request: Any,
) -> Artifact:  # fmt: skip
    session = Session(registry, fresh=fresh)
    evaluation = Evaluation(session, holder, EvalRequest(**request), releases)
    (found,) = evaluation.evaluate([SuiteRows.open(suite_of(suite), releases)])
    assert evaluation.failed == []
    return found


def test_scores_made_twice_are_the_same_bytes(
    registry: Registry, holder: ModelHolder, releases: Path
) -> None:
    first = evaluate(registry, holder, releases, "jecqa")
    again = evaluate(registry, holder, releases, "jecqa", fresh=True)
    files = [{one.path: one.sha256 for one in each.manifest.files} for each in (first, again)]
    assert files[0] == files[1]
    assert first.manifest.facts == again.manifest.facts
    assert first.digest == again.digest


def test_what_is_recorded(
    registry: Registry, holder: ModelHolder, checkpoint: Artifact, releases: Path, make_prompts: Any
) -> None:
    found = evaluate(registry, holder, releases, "jecqa", limit=2, seed=3)
    assert found.parents == (checkpoint.digest,)
    assert found.name == "made-jecqa"
    recorded = found.manifest.recipe["scores"]
    assert recorded["suite"] == "jecqa"
    assert (recorded["shots"], recorded["limit"], recorded["seed"]) == (5, 2, 3)
    facts = found.manifest.facts
    whole = read_summaries(found)[0]
    assert (facts["suite"], facts["metric"]) == ("jecqa", "acc,none")
    assert (facts["score"], facts["stderr"], facts["samples"]) == (
        whole.score, whole.stderr, 4,
    )  # fmt: skip
    loaded = make_prompts("jecqa").loaded
    assert facts["tasks"] == {
        name: {"hash": task_hash(task), "version": task.VERSION}
        for name, task in loaded.tasks.items()
    }
    rows = SuiteRows.open(suite_of("jecqa"), releases)
    assert rows.release is not None
    assert facts["data"]["files"] == {one.name: one.sha256 for one in rows.release.files}
    assert len(facts["data"]["files"]) >= 2
    assert facts["data"]["differences"] == list(rows.release.differences) != []
    assert facts["data"]["origin"] == rows.release.origin


def test_the_files(registry: Registry, holder: ModelHolder, releases: Path) -> None:
    found = evaluate(registry, holder, releases, "jecqa")
    summaries = read_summaries(found)
    assert [one.subject is None for one in summaries] == [True, False, False]
    names = ["bc2_jecqa_ca", "bc2_jecqa_kd"]
    assert sorted(found.files()) == sorted(
        [SCORES, RESULTS, CSV, MARKDOWN, *(f"{SAMPLES}/samples_{name}.jsonl" for name in names)]
    )
    assert found.file(SCORES).read_text() == scores_json(summaries)
    assert found.file(CSV).read_text() == scores_csv(summaries)
    assert found.file(MARKDOWN).read_text() == scores_markdown(summaries)
    results = json.loads(found.file(RESULTS).read_bytes())
    assert results["results"]["bc2_jecqa"]["acc,none"] == pytest.approx(summaries[0].score)
    assert results["config"]["model_sha"] == found.parents[0]
    assert results["max_length"] == holder.window
    assert results["n-shot"] == dict.fromkeys(["bc2_jecqa", *names], 5)
    for name in names:
        lines = found.file(f"{SAMPLES}/samples_{name}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == results["n-samples"][name]["effective"]
        assert {len(row["resps"]) for row in rows} == {4}
        right = sum(row["acc"] for row in rows) / len(rows)
        assert right == results["results"][name]["acc,none"]
        assert all(len(row["prompt_hash"]) == 64 for row in rows)


def test_damaged_scores_are_not_read(
    registry: Registry, holder: ModelHolder, releases: Path
) -> None:
    found = evaluate(registry, holder, releases, "jecqa", limit=1)
    path = found.path / SCORES
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"acc", b"ACC"))
    with pytest.raises(IntegrityError):
        read_summaries(found)


def facts_of(make_prompts: Any, holder: ModelHolder, suite: str) -> Any:
    run = SuiteRun(make_prompts(suite), holder)
    return suite_facts(run, run.prompts.loaded)


def test_what_is_known_of_suites(make_prompts: Any, holder: ModelHolder) -> None:
    mmlu = facts_of(make_prompts, holder, "mmlu")
    assert (mmlu.headline, mmlu.chance, mmlu.clustered) == ("acc,none", 0.25, True)
    assert (mmlu.weighted, mmlu.percent, mmlu.shots) == (True, True, 5)
    assert len(mmlu.subjects) == 57
    assert mmlu.subjects["mmlu_anatomy"] == "anatomy"
    gsm8k = facts_of(make_prompts, holder, "gsm8k")
    assert gsm8k.fallbacks == {"strict-match": "[invalid]", "flexible-extract": "[invalid]"}
    assert gsm8k.headline == "exact_match,strict-match"
    alone = facts_of(make_prompts, holder, "gsm8k_cot")
    assert (alone.headline, alone.shots) == ("exact_match,strict-match", 8)


def test_guessing_at_a_task_by_its_name(make_prompts: Any, holder: ModelHolder) -> None:
    assert facts_of(make_prompts, holder, "mmlu_anatomy").chance == {"mmlu_anatomy": 0.25}
    stem = facts_of(make_prompts, holder, "mmlu_stem").chance
    assert len(stem) > 10
    assert set(stem.values()) == {0.25}
    assert facts_of(make_prompts, holder, "gsm8k_cot").chance == {"gsm8k_cot": None}


def test_a_task_without_a_metric(make_prompts: Any, holder: ModelHolder) -> None:
    prompts = make_prompts("gsm8k_cot")
    (task,) = prompts.loaded.tasks.values()
    task._aggregation_list = {}
    with pytest.raises(DataError, match="gsm8k_cot has no metric"):
        suite_facts(SuiteRun(prompts, holder), prompts.loaded)
