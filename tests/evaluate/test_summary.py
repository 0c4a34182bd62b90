"""Summaries of made samples; their equality with lm-eval's is in test_lm_eval_files.py."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bc2.errors import RunFailed
from bc2.evaluate.samples import Answer, Sample
from bc2.evaluate.statistics import clustered_standard_error, standard_error, wilson_interval
from bc2.evaluate.summary import SuiteFacts, Summary, summarize

CHOICE = SuiteFacts("cmmlu", "acc,none", shots=5, chance=0.25)
WORDS = SuiteFacts(
    "gsm8k", "exact_match,strict", fallbacks={"strict": "[invalid]", "flexible": "[invalid]"}
)


def scored(task: str, values: Sequence[Any], **answer: Any) -> list[Sample]:
    return [
        Sample(
            "cmmlu", task, number, {"question": "?"}, None, "00", "A",
            (Answer(log_prob=-1.0, greedy=False), Answer(log_prob=-2.0, greedy=False, **answer)),
            {"none": [(-1.0, False), (-2.0, False)]},
            {"none": {"acc": value, "acc_norm": 1 - value}},
        )
        for number, value in enumerate(values)
    ]  # fmt: skip


def written(texts: Sequence[str], found: Sequence[Any], **answer: Any) -> list[Sample]:
    return [
        Sample(
            "gsm8k", "gsm8k", number, {}, None, "00", "3", (Answer(text=text, **answer),),
            {"strict": [given], "flexible": ["3"]},
            {"strict": {"exact_match": float(given == "3")}, "flexible": {"exact_match": 1.0}},
        )
        for number, (text, given) in enumerate(zip(texts, found, strict=True))
    ]  # fmt: skip


def test_a_suite_and_its_subjects() -> None:
    law, tax = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0]
    samples = scored("made_law", law, cut=3) + scored("made_tax", tax)
    facts = SuiteFacts("cmmlu", "acc,none", chance=0.25, subjects={"made_law": "法律"})
    whole, *subjects = summarize(samples, facts)
    assert (whole.subject, whole.score, whole.samples, whole.cut) == (None, 0.5, 6, 4)
    assert whole.stderr == clustered_standard_error(law + tax, [0] * 4 + [1] * 2)
    assert (whole.mean_of, whole.clusters) == ("samples", 2)
    assert whole.others == {"acc_norm,none": 0.5}
    assert [(each.subject, each.score, each.stderr, each.clusters) for each in subjects] == [
        ("法律", 0.75, standard_error(law), 0),
        ("made_tax", 0.0, 0.0, 0),
    ]
    # No error is known where all answers are equal, yet an interval is.
    assert subjects[1].interval == wilson_interval(0.0, 2, 1.959963984540054)


def test_mean_of_subjects() -> None:
    samples = scored("law", [1.0, 1.0, 1.0, 0.0]) + scored("tax", [0.0, 0.0])
    whole = summarize(samples, SuiteFacts("cmmlu", "acc,none", weighted=False))[0]
    assert (whole.score, whole.mean_of, whole.clusters) == (0.375, "subjects", 2)
    assert whole.stderr == pytest.approx(0.375)  # half the distance of two subjects' means
    by_sample = summarize(samples, SuiteFacts("cmmlu", "acc,none", clustered=False))[0]
    assert by_sample.stderr == standard_error([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert by_sample.clusters == 0


def test_a_suite_of_one_task_is_one_row() -> None:
    (found,) = summarize(scored("law", [1.0, 0.0, 1.0]), CHOICE)
    assert (found.suite, found.subject, found.samples, found.clusters) == ("cmmlu", None, 3, 0)
    assert (found.shots, found.cut, found.at_limit, found.not_extracted) == (5, 0, 0, None)
    assert found.not_extracted_share is None


@pytest.mark.parametrize(("right", "label"), [(25, "near chance"), (33, "near chance"), (50, "")])
def test_label_of_what_guessing_scores(right: int, label: str) -> None:
    (found,) = summarize(scored("law", [1.0] * right + [0.0] * (100 - right)), CHOICE)
    assert found.label == label


def test_chance_of_subjects_that_differ() -> None:
    samples = scored("four", [1.0, 0.0, 0.0]) + scored("five", [0.0])
    facts = SuiteFacts("agieval", "acc,none", chance={"four": 0.25, "five": 0.2})
    assert [each.chance for each in summarize(samples, facts)] == [
        pytest.approx((3 * 0.25 + 0.2) / 4), 0.25, 0.2,
    ]  # fmt: skip
    facts = SuiteFacts("agieval", "acc,none", chance={"four": 0.25, "five": None})
    assert [each.chance for each in summarize(samples, facts)] == [None, 0.25, None]


def test_answers_at_the_limit_and_without_an_answer() -> None:
    texts, found = ["#### 3", "three", "#### 4", "…"], ["3", "[invalid]", "4", "[invalid]"]
    samples = written(texts[:3], found[:3]) + written(texts[3:], found[3:], met_limit=True)
    (summary,) = summarize(samples, WORDS)
    assert (summary.score, summary.at_limit) == (0.25, 1)
    assert summary.not_extracted == {"strict": 0.5, "flexible": 0.0}
    assert summary.not_extracted_share == 0.5
    assert (summary.chance, summary.label) == (None, "")


def test_repeats_are_missed_only_together() -> None:
    samples = written(["a", "b"], [["[invalid]", "3"], ["[invalid]", "[invalid]"]])
    (summary,) = summarize(samples, WORDS)
    assert summary.not_extracted_share == 0.5


def test_nothing_extracted_is_no_score() -> None:
    texts = ["I do not know " + "x" * 200, "nor I"]
    samples = written(texts, ["[invalid]"] * 2, met_limit=True)
    with pytest.raises(RunFailed) as failed:
        summarize(samples, WORDS)
    assert failed.value.exit_code == 1
    assert failed.value.what == (
        "gsm8k: the filter strict found an answer in none of 2 samples, so there is no score"
    )
    shown = texts[0][:120]
    assert failed.value.where == f"gsm8k, sample 0 answered '{shown}…'"
    assert str(failed.value.todo).startswith("2 answers ended at the length limit: allow more")
    # Of other filters it is only counted.
    other = SuiteFacts("gsm8k", "exact_match,flexible", fallbacks=WORDS.fallbacks)
    assert summarize(samples, other)[0].not_extracted == {"strict": 1.0, "flexible": 0.0}


@pytest.mark.parametrize(
    ("samples", "facts", "message"),
    [
        ([], CHOICE, "cmmlu has no samples"),
        (
            scored("law", [1.0]),
            SuiteFacts("cmmlu", "acc,nine"),
            "cmmlu: samples of law have no metric acc,nine "
            r"\(they have acc,none, acc_norm,none\); take acc,none",
        ),
        (scored("law", [1.0, float("nan")]), CHOICE, "cmmlu: acc,none of all samples is nan"),
    ],
)
def test_what_gives_no_score(samples: list[Sample], facts: SuiteFacts, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        summarize(samples, facts)


def test_a_metric_that_is_no_mean() -> None:
    facts = SuiteFacts(
        "text",
        "acc,none",
        chance=0.5,
        percent=False,
        aggregations={"acc": lambda values: max(values)},
    )
    samples = scored("one", [0.25, 0.5]) + scored("two", [1.0, 0.0])
    whole, one, _ = summarize(samples, facts)
    assert (one.score, one.stderr, one.interval, one.label) == (0.5, None, None, "")
    assert (whole.score, whole.stderr, whole.interval, whole.clusters) == (0.75, None, None, 0)


def test_other_metrics_need_not_be_finite() -> None:
    (sample,) = scored("law", [0.0])
    extra = replace(sample, metrics={"none": {"acc": 0.0, "extra": float("inf")}})
    (found,) = summarize([sample, extra], CHOICE)
    assert found.others == {"acc_norm,none": 1.0, "extra,none": None}


def test_summaries_are_json() -> None:
    samples = scored("law", [1.0, 0.0]) + scored("tax", [0.0])
    for found in [*summarize(samples, CHOICE), *summarize(written(["3"], ["3"]), WORDS)]:
        text = json.dumps(found.to_json(), allow_nan=False)
        assert Summary.from_json(json.loads(text)) == found


def test_samples_are_not_kept() -> None:
    alive: list[weakref.ref[Sample]] = []

    def many() -> Iterator[Sample]:
        for number in range(50):
            (sample,) = scored("law", [float(number % 2)])
            alive.append(weakref.ref(sample))
            yield sample
            del sample
            # The first stays as an example for errors; the loop still holds the last.
            assert sum(each() is not None for each in alive) <= 2

    assert summarize(many(), CHOICE)[0].samples == 50
