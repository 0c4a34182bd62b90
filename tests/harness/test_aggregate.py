"""Totals of tasks made here, and what they say of themselves.

That totals of an evaluation are lm-eval's is in tests/evaluate/test_lm_eval_files.py.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from bc2.harness.aggregate import aggregate, extraction_fallbacks, other_aggregations

REGEX = {"function": "regex", "regex_pattern": "#### ([0-9]+)"}
FIRST = {"function": "take_first"}


def task(aggregation: str = "mean", filters: dict[str, list[dict[str, str]]] | None = None) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_list([{"question": f"问 {n}", "answer": str(n)} for n in range(4)])
    config = {
        "task": "made", "custom_dataset": lambda **_: {"test": rows}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["\n"]}, "num_fewshot": 0,
        "metric_list": [
            {"metric": "exact_match", "aggregation": aggregation, "higher_is_better": True}
        ],
        "metadata": {"version": 2.0},
    }  # fmt: skip
    if filters:
        config["filter_list"] = [{"name": n, "filter": steps} for n, steps in filters.items()]
    return ConfigurableTask(config=config)


def test_totals_of_a_task() -> None:
    found = aggregate({"made": (task(), {("exact_match", "none"): [1.0, 0.0, 0.0, 0.0]})})
    assert found["results"]["made"] == {
        "name": "made", "alias": "made", "sample_len": 4, "exact_match,none": 0.25,
        "exact_match_stderr,none": 0.25,
    }  # fmt: skip
    assert found["n-samples"] == {"made": {"original": 4, "effective": 4}}
    assert (found["versions"], found["n-shot"]) == ({"made": 2.0}, {"made": 0})
    assert found["higher_is_better"] == {"made": {"exact_match": True}}
    assert found["configs"]["made"]["doc_to_text"] == "{{question}}"
    assert "groups" not in found


def test_errors_can_be_left_out() -> None:
    scored = {"made": (task(), {("exact_match", "none"): [1.0, 0.0]})}
    found = aggregate(scored, bootstrap_iters=0)
    assert found["results"]["made"]["exact_match_stderr,none"] == "N/A"


@pytest.mark.parametrize("before", [None, "0"])
def test_bootstrap_leaves_stdout_and_the_environment(
    before: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    if before is not None:
        monkeypatch.setenv("DISABLE_MULTIPROC", before)
    values = [float(n % 3) for n in range(20)]
    scored = {"made": (task("median"), {("exact_match", "none"): values})}
    found = aggregate(scored, bootstrap_iters=50)
    assert found["results"]["made"]["exact_match_stderr,none"] > 0
    assert os.environ.get("DISABLE_MULTIPROC") == before
    out, err = capsys.readouterr()
    assert out == ""
    assert "bootstrapping" in err


def test_metrics_that_are_no_means() -> None:
    assert other_aggregations(task()) == {}
    (made,) = other_aggregations(task("median")).values()
    assert made([1.0, 5.0, 2.0]) == 2.0


def test_what_filters_give_that_find_nothing() -> None:
    assert extraction_fallbacks(task()) == {}
    made = task(
        filters={
            "strict": [REGEX, FIRST],
            "named": [{**REGEX, "fallback": "nothing"}, FIRST],
            "twice": [{**REGEX, "fallback": "first"}, {**REGEX, "fallback": "second"}],
            "plain": [{"function": "lowercase"}, FIRST],
        }
    )
    found = extraction_fallbacks(made)
    assert found == {"strict": "[invalid]", "named": "nothing", "twice": "second"}
    # It is what lm-eval's filters give.
    for ensemble in made._filters:
        given: Any = [["no number"]]
        for make in ensemble.filters:
            given = list(make().apply(given, [{}]))
        if ensemble.name in found:
            assert given[0] in (found[ensemble.name], [found[ensemble.name]])
