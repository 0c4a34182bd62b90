"""Files and totals against lm-eval itself: it evaluates made tasks, and writes both files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bc2.evaluate.lm_eval_files import (
    RunRecord,
    date_id,
    raw_metrics,
    results_json,
    sample_rows,
    write_samples,
)
from bc2.evaluate.samples import Answer, Sample
from bc2.evaluate.summary import SuiteFacts, Summary, summarize
from bc2.harness.aggregate import aggregate, extraction_fallbacks, other_aggregations

ITERS = 20

CHOICE = """\
task: made_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, dev: {rows}}}}}
test_split: test
fewshot_split: dev
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\n答案："
doc_to_choice: ["A", "BB", "CCC", "DDDD"]
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""

WORDS = """\
task: made_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
num_fewshot: 0
repeats: 2
output_type: generate_until
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{label}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, regex_pattern: "(-?[0-9]+)", group_select: -1, fallback: nothing}}
      - {{function: take_first}}
metadata: {{version: 3.0}}
"""

MIDDLE = """\
task: made_middle
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
num_fewshot: 0
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{label}}}}"
generation_kwargs: {{until: ["\\n"]}}
metric_list:
  - {{metric: exact_match, aggregation: median, higher_is_better: true}}
metadata: {{version: 0}}
"""

GROUP = """\
group: {name}
task: [made_law, made_tax]
aggregate_metric_list:
  - {{metric: acc, aggregation: mean, weight_by_size: {weighted}}}
  - {{metric: acc_norm, aggregation: mean, weight_by_size: {weighted}}}
metadata: {{version: 1.5}}
"""


def number(text: str, below: int) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % below


def generated(prompt: str) -> str:
    said = number(prompt, 4)
    return [f"so #### {said}", f"I think {said} 元", "我不知道", '"quoted"\tand 2'][said]


def model() -> Any:
    from lm_eval.api.model import LM

    class Made(LM):
        """Answers that depend on the request alone."""

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            return [
                (-number(repr(each.args), 1000) / 7, number(each.args[1], 2) == 1)
                for each in requests
            ]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [generated(each.args[0]) for each in requests]

    return Made()


@dataclass
class Evaluated:
    """What lm-eval made of the tasks."""

    results: dict[str, Any]
    logged: dict[str, list[dict[str, Any]]]
    """As they are before lm-eval writes them."""
    files: dict[str, bytes]
    """By task, its samples."""
    written: dict[str, Any]
    """The results file."""
    tasks: dict[str, Any]
    groups: dict[str, Any]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    folder = tmp_path_factory.mktemp("lm-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("DISABLE_MULTIPROC", "1")
        yield evaluate(folder)


def evaluate(folder: Path) -> Evaluated:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    for name, count in {"law": 7, "tax": 12, "words": 9, "middle": 5}.items():
        rows = [
            {"question": f"{name} 问题 {i}?", "label": number(name + str(i), 4)}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        form = {"words": WORDS, "middle": MIDDLE}.get(name, CHOICE)
        (folder / f"{name}.yaml").write_text(form.format(name=name, rows=folder / f"{name}.jsonl"))
    for name, weighted in {"made_by_size": True, "made_by_subject": False}.items():
        (folder / f"{name}.yaml").write_text(GROUP.format(name=name, weighted=weighted))
    # A task may stand below one name only of those that are asked for.
    (folder / "made.yaml").write_text("group: made\ntask: [made_by_size, made_by_subject]\n")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    asked = ["made", "made_words", "made_middle"]
    results = simple_evaluate(
        model(), tasks=asked, task_manager=manager, bootstrap_iters=ITERS,
        evaluation_tracker=tracker,
    )  # fmt: skip
    samples = results.pop("samples")
    logged = {name: [dict(each) for each in own] for name, own in samples.items()}
    tracker.save_results_aggregated(results, samples)
    for name, own in samples.items():
        tracker.save_results_samples(name, own)
    (written,) = (folder / "out").rglob("results_*.json")
    files = {
        name: next(written.parent.glob(f"samples_{name}_*.jsonl")).read_bytes() for name in samples
    }
    loaded = manager.load(asked)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    return Evaluated(
        results, logged, files, json.loads(written.read_text()), loaded["tasks"], loaded["groups"]
    )


def samples_of(evaluated: Evaluated, task: str) -> list[Sample]:
    """lm-eval's samples as ours."""
    by_id: dict[int, Sample] = {}
    for row in evaluated.logged[task]:
        prompt = row["arguments"][0][0]
        sample = by_id.get(row["doc_id"]) or Sample(
            suite="made", task=task, doc_id=row["doc_id"], doc=row["doc"], prompt=prompt,
            prompt_digest=hashlib.sha256(prompt.encode()).hexdigest(), target=row["target"],
            answers=tuple(answer(given) for repeats in row["resps"] for given in repeats),
            filtered={}, metrics={},
        )  # fmt: skip
        name = row["filter"]
        by_id[row["doc_id"]] = replace(
            sample,
            filtered={**sample.filtered, name: row["filtered_resps"]},
            metrics={**sample.metrics, name: {key: row[key] for key in row["metrics"]}},
        )
    return list(by_id.values())


def answer(given: Any) -> Answer:
    return Answer(text=given) if isinstance(given, str) else Answer(*given)


def all_samples(evaluated: Evaluated) -> list[Sample]:
    return [sample for task in evaluated.logged for sample in samples_of(evaluated, task)]


def arguments_of(evaluated: Evaluated, sample: Sample) -> Any:
    rows = evaluated.logged[sample.task]
    return next(row["arguments"] for row in rows if row["doc_id"] == sample.doc_id)


def test_samples_are_lm_evals_to_the_byte(evaluated: Evaluated, tmp_path: Path) -> None:
    hashes = write_samples(
        tmp_path, iter(all_samples(evaluated)), lambda each: arguments_of(evaluated, each), "DATE"
    )
    for task, expected in evaluated.files.items():
        assert (tmp_path / f"samples_{task}_DATE.jsonl").read_bytes() == expected
    assert hashes == evaluated.written["task_hashes"]
    assert len(evaluated.files["made_words"].splitlines()) == 2 * 9


@pytest.fixture(scope="module")
def totals(evaluated: Evaluated) -> dict[str, Any]:
    values = raw_metrics(all_samples(evaluated))
    scored = {name: (task, values[name]) for name, task in evaluated.tasks.items()}
    return aggregate(scored, evaluated.groups, bootstrap_iters=ITERS)


def test_totals_are_lm_evals(evaluated: Evaluated, totals: dict[str, Any]) -> None:
    assert len(evaluated.groups) == 3
    assert set(totals) == set(evaluated.results) & set(totals)
    for key, value in totals.items():
        assert value == evaluated.results[key], key
    assert isinstance(totals["results"]["made_middle"]["exact_match_stderr,none"], float)


RECORD = RunRecord(
    model_name="checkpoint/tiny@350", model_sha="ab" * 32, parameters=25_000_000,
    dtype="torch.float32", max_length=512, eot_token_id=2, started=1_764_441_042.0, seconds=12.5,
    bootstrap_iters=ITERS, seed=1234, limit=10, special_tokens={"eos": ("</s>", 2)},
)  # fmt: skip


def test_results_do_not_depend_on_where_functions_lie_in_memory() -> None:
    def doc_to_text(doc: Any) -> str:
        return str(doc)

    configs = {"made": {"doc_to_text": str(doc_to_text), "doc_to_choice": doc_to_text}}
    found = json.loads(results_json({"configs": configs}, RECORD, {}))["configs"]["made"]
    name = f"<function {doc_to_text.__qualname__}>"
    assert found == {"doc_to_text": name, "doc_to_choice": name}


def test_results_file_has_lm_evals_form(evaluated: Evaluated, totals: dict[str, Any]) -> None:
    found = json.loads(results_json(totals, RECORD, evaluated.written["task_hashes"]))
    theirs = evaluated.written
    for key in [*totals, "task_hashes"]:
        assert found[key] == theirs[key], key
    # A tokenizer and its window lm-eval writes only for a model that shows them.
    extra = {"eot_token_id", "max_length"} | {f"tokenizer_{n}_token" for n in ("pad", "eos", "bos")}
    assert set(found) - extra == set(theirs)
    assert set(theirs["config"]) <= set(found["config"])
    assert found["lm_eval_version"] == theirs["lm_eval_version"]
    assert found["model_name_sanitized"] == "checkpoint__tiny@350"
    assert found["tokenizer_eos_token"] == ["</s>", "2"]
    assert type(found["total_evaluation_time_seconds"]) is str


def test_names_of_files_are_read_by_lm_eval(evaluated: Evaluated) -> None:
    from lm_eval.utils import get_file_datetime, get_file_task_name, get_results_filenames

    date = date_id(RECORD.started)
    assert len(date) == len("2025-11-29T18-30-42.000000")
    assert get_file_task_name(f"samples_made_law_{date}.jsonl") == "made_law"
    assert get_file_datetime(f"results_{date}.json") == f"{date}.json"
    assert get_results_filenames([f"out/results_{date}.json"])


@pytest.mark.parametrize("weighted", [True, False])
def test_summaries_have_lm_evals_scores(evaluated: Evaluated, weighted: bool) -> None:
    samples = samples_of(evaluated, "made_law") + samples_of(evaluated, "made_tax")
    facts = SuiteFacts("made", "acc,none", weighted=weighted, clustered=False)
    whole, *subjects = summarize(samples, facts)
    group = evaluated.results["groups"]["made_by_size" if weighted else "made_by_subject"]
    assert (whole.score, whole.others["acc_norm,none"]) == (
        group["acc,none"],
        group["acc_norm,none"],
    )
    for found in subjects:
        theirs = evaluated.results["results"][found.subject]
        assert found.score == theirs["acc,none"]
        assert found.stderr == pytest.approx(theirs["acc_stderr,none"], rel=1e-12)
    if not weighted:
        assert whole.stderr == pytest.approx(group["acc_stderr,none"], rel=1e-12)


def only(evaluated: Evaluated, task: str, headline: str) -> Summary:
    made = evaluated.tasks[task]
    facts = SuiteFacts(
        task, headline, aggregations=other_aggregations(made), fallbacks=extraction_fallbacks(made)
    )
    (found,) = summarize(samples_of(evaluated, task), facts)
    return found


def test_a_metric_that_is_no_mean(evaluated: Evaluated) -> None:
    found = only(evaluated, "made_middle", "exact_match,none")
    assert found.score == evaluated.results["results"]["made_middle"]["exact_match,none"]
    assert found.stderr is found.interval is None


def test_shares_not_extracted(evaluated: Evaluated) -> None:
    found = only(evaluated, "made_words", "exact_match,flexible-extract")
    texts = [each.answers[0].text for each in samples_of(evaluated, "made_words")]
    assert found.not_extracted == {
        "strict-match": sum("####" not in str(text) for text in texts) / 9,
        "flexible-extract": sum(text == "我不知道" for text in texts) / 9,
    }
    assert 0 < found.not_extracted["flexible-extract"] < found.not_extracted["strict-match"]
    assert found.not_extracted_share == found.not_extracted["flexible-extract"]


def test_answers_of_other_requests_are_refused(evaluated: Evaluated) -> None:
    sample = samples_of(evaluated, "made_law")[0]
    with pytest.raises(ValueError, match="made_law, sample 0: 4 answers to 3 requests"):
        list(sample_rows(sample, [("p", "c")] * 3))


def test_a_text_scored_as_a_whole() -> None:
    sample = Sample(
        "text", "text", 0, {"page": "x"}, "", hashlib.sha256(b"").hexdigest(), "x",
        (Answer(log_prob=-2.5),), {"none": [-2.5]}, {"none": {"word_perplexity": (-2.5, 1)}},
    )  # fmt: skip
    (row,) = sample_rows(sample, [("x",)])
    assert row["resps"] == [["-2.5"]]
    assert row["filtered_resps"] == ["-2.5"]
    assert row["word_perplexity"] == (-2.5, 1)
