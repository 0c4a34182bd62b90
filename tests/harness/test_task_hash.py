"""A task's hash: the same wherever it is installed, another if it asks or counts otherwise."""

from __future__ import annotations

import shutil

import lm_eval
import pytest

from bc2.harness import load, task_index
from bc2.harness.load import load_suite
from bc2.harness.suites import Suite
from bc2.harness.task_hash import task_hash

YAML = """\
task: quiz
dataset_path: some/quiz
output_type: generate_until
test_split: test
fewshot_split: dev
doc_to_text: !function helper.asked
doc_to_target: "{{a}}"
generation_kwargs:
  until: ["\\n"]
  temperature: 0.0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: cut
    filter:
      - function: custom
        filter_fn: !function helper.cut
metadata:
  version: 1.0
"""

HELPER = """\
MARK = "Q: "


def asked(doc):
    return MARK + doc["q"]


def cut(resps, docs):
    return [[one.strip() for one in row] for row in resps]
"""

ROWS = {split: [{"q": f"{split} {i}?", "a": str(i)} for i in range(3)] for split in ("dev", "test")}


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """The hash of the task in a folder of this name, made of these texts."""
    monkeypatch.setattr(
        load, "suite_manager",
        lambda name, folder: task_index.manager_of(name, str(tmp_path / "now"), where="here"),
    )  # fmt: skip

    def make(folder="one", yaml=YAML, helper=HELPER, rows=ROWS, **asked):
        path = tmp_path / "now"
        shutil.rmtree(path, ignore_errors=True)
        place = path / folder
        place.mkdir(parents=True)
        (place / "quiz.yaml").write_text(yaml)
        (place / "helper.py").write_text(helper)
        task_index.task_manager.cache_clear()
        suite = Suite("quiz", "Quiz", None, "quiz", None, None)
        loaded = load_suite(suite, {("some/quiz", None): rows}, **asked)
        return task_hash(loaded.tasks["quiz"])

    yield make
    task_index.task_manager.cache_clear()


def test_place_rows_shots_and_seed_do_not_count(hashed):
    first = hashed()
    assert len(first) == 64
    assert hashed() == first
    assert hashed(folder="another") == first
    assert hashed(rows={**ROWS, "test": ROWS["test"][:1]}) == first
    assert hashed(shots=2, seed=7) == first


@pytest.mark.parametrize(
    "change",
    [
        {"yaml": YAML.replace("{{a}}", "{{a}}.")},
        {"yaml": YAML.replace("exact_match", "bleu")},
        {"yaml": YAML.replace('["\\n"]', '["\\n\\n"]')},
        {"yaml": YAML.replace("name: cut", "name: cuts")},
        {"yaml": YAML.replace("fewshot_split: dev", "fewshot_split: test")},
        {"yaml": YAML.replace("version: 1.0", "version: 2.0")},
        {"helper": HELPER.replace("strip", "rstrip")},
        {"helper": HELPER.replace('"Q: "', '"Question: "')},
    ],
)
def test_what_is_asked_and_counted_does(hashed, change):
    assert {**{"yaml": YAML, "helper": HELPER}, **change} != {"yaml": YAML, "helper": HELPER}
    assert hashed(**change) != hashed()


def test_lm_evals_version_does(hashed, monkeypatch):
    first = hashed()
    monkeypatch.setattr(lm_eval, "__version__", "0.4.99")
    assert hashed() != first
