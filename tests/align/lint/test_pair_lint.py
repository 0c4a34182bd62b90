"""A whole lint of pairs: faults where they are, what training says too, figures by hand."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_pair_lints import compared, good_pairs, pair_lint_task

from bc2.align.lint.length_bias import length_bias
from bc2.align.lint.lint_report import Finding, LintReport
from bc2.align.lint.pair_lint import PairLintTask, lint_pairs
from bc2.align.lint.shown_pairs import find_pairs, first_pair_row, shown_pairs
from bc2.align.pairs.pair_inputs import checked_pairs
from bc2.align.samples.row_checks import FAULTS
from bc2.data.pairs.pairs import Pairs
from bc2.data.splits import SPLITS
from bc2.errors import DataError
from bc2.report import lint_page

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))

SAME = "word " * 400
#: 60 good rows, then rows 61 to 68.
FAULTY = [
    *good_pairs(60),
    compared("Is an empty answer one?", " It is not.", "\u200b"),
    compared("What is cut?", "```python\nprint(", "Nothing."),
    compared("What is long?", "word " * 300, "Short."),
    compared("word " * 300, "Yes.", "No."),
    compared("Where do they part?", SAME + "here.", SAME + "there, later."),
    compared("What is 1 and one?", "It is 2.", "It is 2, of course, and so on."),
    compared("What is 2 and one?", "It is 3, of course, and so on.", "It is 3."),
    compared("What is </s>?", "An end.", "A word."),
]
#: a > b > c > a, in a source of its own.
CYCLE = [compared("Which?", a, b) for a, b in (("A.", "B."), ("B.", "C."), ("C.", "A."))]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)


@pytest.fixture
def faulty(tmp_path: Path) -> PairLintTask:
    return pair_lint_task(tmp_path, {"web": FAULTY, "ring": CYCLE})


def finding(report: LintReport, code: str) -> Finding:
    (found,) = [one for one in report.findings if one.code == code]
    return found


def rows(report: LintReport, code: str) -> list[int]:
    return sorted(place.row for place in finding(report, code).examples)


def test_every_fault_is_found_where_it_is(faulty: PairLintTask) -> None:
    report = lint_pairs(faulty)
    assert rows(report, "empty_answer") == [61]
    assert rows(report, "cut_answer") == [62]
    assert rows(report, "too_long") == [63, 65]
    assert rows(report, "prompt_fills_window") == [64]
    assert rows(report, "identical_when_cut") == [64, 65]
    assert rows(report, "copy") == [66]
    assert rows(report, "contradiction") == [3, 67]
    assert rows(report, "spelled_control") == [68]
    assert finding(report, "cycle").by_source == {"ring": 3}
    quiet = set(FAULTS) - {"empty_answer", "cut_answer"} | {"identical", "prompts_differ"}
    assert {finding(report, code).count for code in quiet} == {0}
    assert report.errors == 1 + 1 + 2 + 1 + 2
    assert (report.unit, report.rows) == ("pairs", 71)


@pytest.mark.parametrize("faulty_is", ["stop", "drop"])
def test_training_leaves_out_what_the_lint_says(tmp_path: Path, faulty_is: str) -> None:
    task = pair_lint_task(tmp_path, {"web": FAULTY}, faulty="drop", too_long="drop")
    report = lint_pairs(task)
    assert report.errors == 0
    pairs = Pairs.open(task.folder)
    config = task.config.model_copy(update={"faulty": faulty_is, "too_long": faulty_is})
    if faulty_is == "stop":
        with pytest.raises(DataError, match="cannot be trained on"):
            [checked_pairs(task.source, pairs, split, config, ends=True) for split in SPLITS]
        return
    kept = [checked_pairs(task.source, pairs, split, config, ends=True) for split in SPLITS]
    assert sum(map(len, kept)) == report.rows - 5 == report.sources[0].samples
    assert report.lengths is not None
    assert report.lengths.tokens == sum(int(one.lengths.sum()) + 2 * len(one) for one in kept)
    assert report.sources[0].tokens == report.lengths.tokens


def test_a_heldout_prompt_that_differs_by_its_case_is_in_training_too(tmp_path: Path) -> None:
    rows_ = [*good_pairs(40)]
    rows_ += [{**one, "prompt": one["prompt"].upper() + "  "} for one in good_pairs(40)]
    report = lint_pairs(pair_lint_task(tmp_path, {"web": rows_}))
    train = {prompt.upper().strip() for prompt in _prompts(tmp_path, "train")}
    both = [one for one in _prompts(tmp_path, "heldout") if one.upper().strip() in train]
    assert both
    assert finding(report, "heldout_prompt_in_training").count == len(both)


def _prompts(folder: Path, split: Any) -> list[str]:
    pairs = Pairs.open(folder / "pairs")
    said = [one.messages[0]["content"] for one in pairs.answers.read(split)]
    return sorted(set(said))


def test_length_bias_is_counted(tmp_path: Path) -> None:
    report = lint_pairs(pair_lint_task(tmp_path, {"web": good_pairs(90)}))
    assert report.pairs is not None
    (bias,) = report.pairs.length_bias
    assert (bias.group, bias.pairs, bias.prompts, bias.ties) == ("all", 90, 90, 0)
    assert bias.longer_wins == pytest.approx(1 / 3)
    assert report.pairs.pairs_per_prompt["max"] == 1


def test_an_interval_is_of_prompts_and_not_of_pairs() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(40), 25)
    longer = np.repeat(rng.random(40) < 0.6, 25)  # all pairs of a prompt alike
    lengths = np.where(longer[:, None], [[3, 2]], [[2, 3]])
    found = length_bias("all", lengths, prompts)
    share = longer.mean()
    width = 2 * 1.96 * np.sqrt(share * (1 - share) / 40)
    assert found.interval is not None
    assert found.longer_wins == share
    assert found.interval[1] - found.interval[0] == pytest.approx(width, rel=0.15)
    assert length_bias("one", lengths[:25], prompts[:25]).interval is None
    assert length_bias("tied", np.ones((4, 2), np.int64), np.arange(4)).longer_wins == 0.5


def test_scores_and_gaps_are_those_of_the_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    asked = []
    for n in range(30):
        scores = rng.choice([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], 4).tolist()
        answers = [{"response": f"{n}: {k}." + " so" * k, "score": s} for k, s in enumerate(scores)]
        asked.append({"messages": [{"role": "user", "content": f"Of {n}?"}], "responses": answers})
    report = lint_pairs(pair_lint_task(tmp_path, {"judged": asked}))
    assert report.pairs is not None
    (scores,) = report.pairs.scores
    gaps = [
        abs(a["score"] - b["score"])
        for one in asked
        for a, b in combinations(one["responses"], 2)
        if a["score"] != b["score"]
    ]
    assert (scores.lowest, scores.highest) == (0.0, 1.0)
    assert sum(count for _, _, count in scores.histogram) == scores.answers
    counted = [sum(round(gap * 5) == fifth for gap in gaps) for fifth in range(1, 6)]
    assert [one.pairs for one in scores.gaps] == counted


def test_a_prompt_of_a_benchmark_is_named(tmp_path: Path) -> None:
    bench = tmp_path / "fbbench"
    bench.mkdir()
    words = "请问为什么天空是蓝色的而夕阳又是红色的，能不能用最简单的话讲给孩子听？"
    row = {"user_query": words, "origin_first_response": "因为光。", "feedback": "太短了。"}
    (bench / "fb_bench_dataset_v3.json").write_text(json.dumps([row]), encoding="utf-8")
    pairs = [*good_pairs(30), compared(f"喂。{words}", "因为散射。", "不知道。")]
    report = lint_pairs(pair_lint_task(tmp_path, {"web": pairs}), benchmarks=bench)
    assert report.pairs is not None
    assert report.pairs.evaluation_prompts == {"fbbench": 1}
    found = finding(report, "evaluation_prompt")
    assert (found.count, found.policy, rows(report, "evaluation_prompt")) == (1, "", [31])
    assert found.examples[0].why.startswith("fbbench test:1: “")
    assert "gsm8k" in report.overlaps.missing


# -- tokens, pages


def test_both_answers_are_shown(faulty: PairLintTask, tmp_path: Path) -> None:
    chosen, rejected = find_pairs(faulty, "ring:1")
    assert (chosen.part, rejected.part) == ("chosen", "rejected")
    learnt = ["".join(t.text for t in one.tokens if t.trained) for one in (chosen, rejected)]
    assert learnt == ["A.</s>", "B.</s>"]
    (bad, _) = find_pairs(faulty, "web:61")
    assert bad.faults[0].startswith("empty_answer: the rejected answer")
    with pytest.raises(DataError, match="row web:700"):
        find_pairs(faulty, "web:700")
    row = first_pair_row(faulty)
    assert row is not None
    assert sum(one.length for one in row.samples) + row.padding == 256
    report = lint_pairs(faulty)
    shown = {one.code: list(shown_pairs(faulty, one.examples)) for one in report.findings}
    page = lint_page.render(report, shown, row)
    for said in (
        "row 61, rejected",
        "In a program that cuts answers",
        "longer wins",
        "Packed equals",
    ):
        assert said in page


def test_a_report_is_json(faulty: PairLintTask) -> None:
    found = json.loads(json.dumps(lint_pairs(faulty, show=1).to_json()))
    assert found["pairs"]["cut"][0]["tokens"] == 128
    assert found["proof"]["holds"] is True
    assert all(len(one["examples"]) <= 1 for one in found["findings"])


# -- real data


def _lines(path: Path) -> Sequence[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data, or BC2_TEST_DATA")
def test_real_pairs_have_what_they_have(tmp_path: Path) -> None:
    scored = _lines(DATA / "align" / "fbbench_scored_responses_zh.jsonl.gz")
    some = {"scored": scored[:60]}
    task = pair_lint_task(tmp_path, some, sequence_length=8192, batch_tokens=8192, faulty="drop")
    report = lint_pairs(task, benchmarks=DATA / "bench" / "fbbench")
    assert report.pairs is not None
    prompts = sum(report.pairs.prompts.values())
    assert report.pairs.evaluation_prompts["fbbench"] > 0.8 * prompts
