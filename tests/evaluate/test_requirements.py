"""`--require`: what is read, what is refused, what fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bc2.errors import RunFailed, UsageError
from bc2.evaluate.requirements import (
    Requirement,
    check_required,
    parse_requirement,
    parse_requirements,
)
from bc2.evaluate.summary import Summary

MADE = Summary(
    suite="cmmlu", subject=None, metric="acc,none", score=0.3, stderr=0.01, interval=None,
    level=0.95, chance=0.25, label="", mean_of="samples", clusters=0, percent=True, shots=5,
    samples=10, cut=0, at_limit=0, not_extracted=None, others={"acc_norm,none": 0.2},
)  # fmt: skip
GSM8K = replace(
    MADE, suite="gsm8k", metric="exact_match,strict-match", score=0.1,
    others={"exact_match,flexible-extract": 0.15, "broken,none": None},
)  # fmt: skip
MADE_LAW = replace(MADE, subject="law", score=0.0)
SUMMARIES = [MADE, MADE_LAW, GSM8K]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cmmlu=0.30", Requirement("cmmlu", None, 0.3)),
        ("cmmlu=29.3%", Requirement("cmmlu", None, 0.293)),
        (" cmmlu = 1 ", Requirement("cmmlu", None, 1.0)),
        ("cmmlu=0", Requirement("cmmlu", None, 0.0)),
        (
            "gsm8k:exact_match,flexible-extract=0.2",
            Requirement("gsm8k", "exact_match,flexible-extract", 0.2),
        ),
    ],
)
def test_forms(text: str, expected: Requirement) -> None:
    assert parse_requirement(text) == expected
    assert parse_requirement(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cmmlu", "--require cmmlu names no suite or score"),
        ("=0.3", "names no suite or score"),
        ("cmmlu:=0.3", "names no suite or score"),
        (":acc=0.3", "names no suite or score"),
        ("cmmlu=high", "--require cmmlu=high: 'high' is no number"),
        ("cmmlu=", "is no number"),
        ("cmmlu=%", "is no number"),
        ("cmmlu=30", "a score is from 0 to 1; write 30% if that is meant"),
        ("cmmlu=130%", "a score is from 0 to 1; write SUITE=SHARE"),
        ("cmmlu=-0.1", "a score is from 0 to 1"),
        ("cmmlu=nan", "a score is from 0 to 1"),
        ("cmmlu=inf", "a score is from 0 to 1"),
        ("cmmlu=sNaN%", "'sNaN%' is no number"),
        ("cmmlu=9e999999999999999999%", "is no number"),
    ],
)
def test_other_forms_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_requirement(text)
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


def test_suites_must_be_evaluated() -> None:
    evaluated, known = ["cmmlu", "gsm8k"], ["cmmlu", "gsm8k", "mmlu"]
    texts = ["cmmlu=0.3", "gsm8k=5%"]
    found = parse_requirements(texts, evaluated=evaluated, known=known)
    assert [each.least for each in found] == [0.3, 0.05]
    with pytest.raises(UsageError, match="mmlu is not evaluated; add it: --bench cmmlu,gsm8k,mmlu"):
        parse_requirements(["mmlu=0.3"], evaluated=evaluated, known=known)
    with pytest.raises(UsageError, match="there is no suite gsm9k; take gsm8k"):
        parse_requirements(["gsm9k=0.3"], evaluated=evaluated, known=known)
    with pytest.raises(UsageError, match="there is no suite zzz; see bc2 eval --list"):
        parse_requirements(["zzz=0.3"], evaluated=evaluated, known=known)


def test_other_names_of_a_suite() -> None:
    texts = ["jec-qa=0.3", "bc2_jecqa:acc=0.2"]
    found = parse_requirements(texts, evaluated=["jecqa"], known=["jecqa"])
    assert found == [Requirement("jecqa", None, 0.3), Requirement("jecqa", "acc", 0.2)]


@pytest.mark.parametrize(
    "text",
    [
        "cmmlu=0.3", "cmmlu=30%", "cmmlu:acc=0.3", "cmmlu:acc_norm=0.2", "cmmlu:acc_norm,none=0.1",
        "gsm8k:exact_match,flexible-extract=15%",
    ],
)  # fmt: skip
def test_scores_that_suffice(text: str) -> None:
    check_required(SUMMARIES, [parse_requirement(text)])
    # A mean over subjects of 0.3 may come out a bit lower.
    low = [replace(each, score=each.score - 1e-16) for each in SUMMARIES]
    check_required(low, [parse_requirement(text)])


def test_all_that_fail_are_named() -> None:
    texts = ["cmmlu=0.31", "gsm8k=0.1", "gsm8k:exact_match,flexible-extract=0.2", "gsm8k:broken=0"]
    with pytest.raises(RunFailed) as failed:
        check_required(SUMMARIES, map(parse_requirement, texts))
    assert failed.value.exit_code == 1
    assert failed.value.what.splitlines() == [
        "3 scores are too low:",
        "  cmmlu: acc,none is 0.3, 0.31 is required",
        "  gsm8k: exact_match,flexible-extract is 0.15, 0.2 is required",
        "  gsm8k: broken,none is not a number, 0 is required",
    ]
    with pytest.raises(
        RunFailed, match=r"^a score is too low:\n  cmmlu: acc,none is 0\.3, 0\.4 is"
    ):
        check_required(SUMMARIES, [parse_requirement("cmmlu=0.4")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mmlu=0.1", "mmlu was not evaluated"),
        ("cmmlu:f1=0.1", "no metric f1; take one of acc,none, acc_norm,none"),
        ("gsm8k:exact_match=0.1", "exact_match has several filters; take one of exact_match,flex"),
    ],
)
def test_metrics_that_are_not_there(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_required(SUMMARIES, [parse_requirement(text)])
