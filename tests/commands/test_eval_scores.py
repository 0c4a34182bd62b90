"""What `bc2 eval` leaves and prints: artifacts, JSON, files, and scores that are required."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bc2.harness.suites import SUITES
from bc2.registry import Registry

pytestmark = pytest.mark.usefixtures("offline")

Bc2 = Callable[..., Any]


def scores(done: Any) -> dict[str, Any]:
    """By suite, the summary of the whole."""
    return {one["suite"]: one["summaries"][0] for one in done.json["scores"]}


def test_scores_are_artifacts_with_a_lineage(bc2: Bc2, bench_data: Path, eval_home: Path) -> None:
    (one,) = bc2("eval", "tiny", "--bench", "medqa", "--data", bench_data, "--json").json["scores"]
    tiny = Registry.open().resolve("checkpoint/tiny")
    lineage = bc2("registry", "lineage", one["ref"])
    assert lineage.code == 0
    assert "checkpoint/tiny" in lineage.out
    assert tiny.ref in lineage.out
    assert bc2("registry", "verify").code == 0
    artifact = Registry.open().resolve(one["ref"])
    assert artifact.parents == (tiny.digest,)
    facts, recorded = artifact.manifest.facts, artifact.manifest.recipe["scores"]
    assert facts["samples"] == 5
    assert list(facts["data"]["files"]) == ["medagents/data/medqa_5options/test.jsonl"]
    assert (recorded["shots"], recorded["seed"], recorded["limit"]) == (5, 1234, None)
    assert set(facts["tasks"]["bc2_medqa"]) == {"hash", "version"}
    assert len(facts["tasks"]["bc2_medqa"]["hash"]) == 64
    lines = (artifact.path / "samples" / "samples_bc2_medqa.jsonl").read_text().splitlines()
    sample = json.loads(lines[0])
    assert len(lines) == 5
    assert len(sample["prompt_hash"]) == 64
    assert len(sample["resps"]) == 5
    assert sample["acc"] in (0.0, 1.0)


def test_json_has_all_that_is_known(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa,gaokao", "--data", bench_data)
    found = bc2(*command, "--json").json
    tiny = Registry.open().resolve("checkpoint/tiny")
    assert found["checkpoint"] == {"ref": tiny.ref, "title": "checkpoint/tiny"}
    assert [one["suite"] for one in found["scores"]] == ["medqa", "gaokao"]
    for one in found["scores"]:
        assert set(one) == {"ref", "name", "path", "made", "suite", "model_seconds", "summaries"}
        assert one["name"] == f"tiny-{one['suite']}"
        assert Path(one["path"]).is_dir()
        assert json.loads(Path(one["path"], "scores.json").read_text()) == one["summaries"]
    subjects = [one["subject"] for one in found["scores"][1]["summaries"]]
    assert subjects[0] is None
    assert len(subjects) == 10
    assert bc2(*command, "--quiet").out.split() == [one["ref"] for one in found["scores"]]
    drawn = bc2(*command).out
    for expected in ("benchmark", "±", "chance", "cut", "at limit", "not extracted"):
        assert expected in drawn
    for one in found["scores"]:
        assert f"scores/{one['name']} {one['ref']}" in drawn


def test_the_newest_model_is_taken_and_said(bc2: Bc2, bench_data: Path) -> None:
    done = bc2("eval", "--bench", "medqa", "--data", bench_data, "--json")
    assert done.json["checkpoint"]["title"] == "checkpoint/tiny"
    assert "taking the newest model, checkpoint/tiny" in done.err


def test_a_folder_from_the_environment(
    bc2: Bc2, bench_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_BENCH_DATA", str(bench_data))
    assert bc2("eval", "tiny", "--bench", "medqa", "--quiet").code == 0


@pytest.mark.slow
def test_out_in_lm_evals_format(
    bc2: Bc2, bench_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import make_table

    from bc2.evaluate.suite_prompts import SuiteRows

    command = ("eval", "tiny", "--bench", "medqa,gaokao", "--data", bench_data, "--json")
    done = bc2(*command, "--out", "scores.json")
    ours = json.loads(Path("scores.json").read_text())
    tasks = [
        task
        for name in ("medqa", "gaokao")
        for task in SuiteRows.open(SUITES[name], bench_data).load(5, 1234).tasks.values()
    ]
    # lm-eval's model that answers at random: what is compared is what its file holds. What it
    # finds out of the machine takes 20 s.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    results = simple_evaluate(
        "dummy", tasks=tasks, evaluation_tracker=tracker, bootstrap_iters=0, log_samples=True
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    (path,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = json.loads(path.read_text())
    assert set(theirs) - set(ours) == set()
    assert set(theirs["config"]) - set(ours["config"]) == set()
    for key in ("n-samples", "versions", "higher_is_better", "n-shot"):
        for task in theirs[key]:
            assert ours[key][task] == theirs[key][task], (key, task)
    for task, values in theirs["results"].items():
        assert set(ours["results"][task]) == set(values)
    whole = scores(done)
    assert ours["results"]["bc2_medqa"]["acc,none"] == whole["medqa"]["score"]
    assert ours["groups"]["bc2_gaokao"]["acc,none"] == pytest.approx(whole["gaokao"]["score"])
    assert "physics" in make_table(ours)


def test_out_as_json_has_all_suites(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa,gaokao", "--data", bench_data, "--json")
    whole = scores(bc2(*command, "--out", "scores.json"))
    found = json.loads(Path("scores.json").read_text())
    assert found["results"]["bc2_medqa"]["acc,none"] == whole["medqa"]["score"]
    assert found["groups"]["bc2_gaokao"]["acc,none"] == pytest.approx(whole["gaokao"]["score"])
    assert found["n-samples"]["bc2_medqa"] == {"original": 5, "effective": 5}


def test_out_as_csv_and_markdown(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa,gaokao", "--data", bench_data, "--json")
    done = bc2(*command, "--out", "scores.csv")
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    summaries = [one for each in done.json["scores"] for one in each["summaries"]]
    assert [(row["suite"], row["subject"]) for row in rows] == [
        (one["suite"], one["subject"] or "") for one in summaries
    ]
    assert [float(row["score"]) for row in rows] == [one["score"] for one in summaries]
    assert bc2(*command, "--out", "scores.md").code == 0
    lines = Path("scores.md").read_text().splitlines()
    assert lines[0].startswith("| benchmark")
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(summaries)


@pytest.mark.parametrize(
    ("required", "code", "said"),
    [
        ("medqa=0", 0, ""),
        ("medqa=0%", 0, ""),
        ("medqa=1", 1, "medqa: acc,none is"),
        ("medqa:acc=100%", 1, "1 is required"),
        ("medqa", 2, "names no suite or score"),
        ("medqa=30", 2, "write 30% if that is meant"),
        ("medqa=high", 2, "'high' is no number"),
        ("medqa:=0.5", 2, "names no suite or score"),
        ("medqa=nan", 2, "a score is from 0 to 1"),
        ("mmlu=0.3", 2, "mmlu is not evaluated"),
        ("medqua=0.3", 2, "take medqa"),
    ],
)
def test_required_scores(bc2: Bc2, bench_data: Path, required: str, code: int, said: str) -> None:
    done = bc2(
        "eval", "tiny", "--bench", "medqa", "--data", bench_data, "--require", required, "--quiet"
    )
    assert done.code == code, done.err
    assert said in done.err
    # Scores that are too low are registered and given all the same.
    assert len(done.out.split()) == (code != 2)


def test_a_required_metric_that_is_none(bc2: Bc2, bench_data: Path) -> None:
    command = ("eval", "tiny", "--bench", "medqa", "--data", bench_data)
    done = bc2(*command, "--require", "medqa:f1=0.5")
    assert done.code == 2
    assert "no metric f1" in done.err
    assert "take one of acc,none" in done.err


TEXTS = [
    {"text": "the quick brown fox jumps over the lazy dog", "lang": "en"},
    {"text": "天下大事", "lang": "zh"},
    {"text": ""},
    {"text": "no language " * 40},
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    return path


def test_ones_own_texts(bc2: Bc2, texts: Path) -> None:
    made = bc2("eval", "short", "--bench", "text", "--data", texts, "--json").json
    assert set(made["languages"]) == {"en", "zh", "unknown"}
    assert (made["total"]["documents"], made["empty_documents"]) == (3, 1)
    assert (made["window"], made["stride"], made["made"]) == (32, 16, True)
    assert made["total"]["bytes"] == sum(len(row["text"].encode()) for row in TEXTS)
    shown = bc2("eval", "short", "--bench", "text", "--data", texts)
    assert re.search(r"^zh +1 ", shown.out, re.MULTILINE)
    assert "is registered already" in shown.err
    one = bc2("eval", "short", "--bench", "text", "--data", texts, "--stride", 1, "--limit", 1)
    assert "stride 1" in one.out


def test_texts_that_are_written_out(bc2: Bc2, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    made = bc2("eval", "short", "--bench", "text", "--data", texts, "--out", out, "--json").json
    assert json.loads(out.read_text())["total"] == made["total"]
    refused = bc2("eval", "short", "--bench", "text", "--data", texts, "--out", tmp_path / "a.csv")
    assert (refused.code, "end it in .json" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--bench", "text"], 3, "no text is given"),
        (["--bench", "text", "--data", "nowhere.jsonl"], 3, "nowhere.jsonl"),
        (["--bench", "text,mmlu"], 2, "text is evaluated alone"),
        (["--bench", "mmlu", "--stride", "4"], 2, "--stride is about --bench text"),
        (["--bench", "text", "--shots", "4"], 2, "--shots is not about --bench text"),
        (["--bench", "text", "--require", "text=1"], 2, "--require is not about --bench text"),
        (["--bench", "gsm8k", "--samples", "4"], 2, "are equal answers"),
        (["--bench", "mmlu,medqa", "--temperature", "1"], 2, "--temperature draws nothing in mmlu"),
    ],
)
def test_options_that_do_not_go_together(bc2: Bc2, more: list[str], code: int, said: str) -> None:
    done = bc2("eval", "short", *more)
    assert done.code == code
    assert said in done.err


def test_a_stride_longer_than_the_window(bc2: Bc2, texts: Path) -> None:
    done = bc2("eval", "short", "--bench", "text", "--data", texts, "--stride", 33)
    assert (done.code, "larger than the model's window of 32" in done.err) == (2, True)
