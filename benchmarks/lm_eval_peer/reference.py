"""Answers of lm-eval's `hf` model to lm-eval's tasks, sample by sample."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from bc2.tokenizer.tokenizer import Tokenizer
from lm_eval_peer.answers import Answers, answers_of
from lm_eval_peer.hf_model import TimedHFLM
from lm_eval_peer.rows import Source, rows_from

#: The seed of lm-eval's command line, with which shots are drawn.
FEWSHOT_SEED = 1234

#: HumanEval as in lm-eval's humaneval.yaml, without the metric that it fetches from the hub when
#: it is read: prompts and answers are the same.
HUMANEVAL: dict[str, Any] = {
    "task": "humaneval",
    "dataset_path": "openai/openai_humaneval",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{test}}\ncheck({{entry_point}})",
    "metric_list": [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": True}],
    "generation_kwargs": {
        "until": ["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
        "max_gen_toks": 1024,
        "do_sample": False,
    },
    "repeats": 1,
    "num_fewshot": 0,
}


@dataclass(frozen=True)
class AskedTask:
    """What to run: lm-eval's task or group, or a configuration; None: its own shots."""

    spec: str | dict[str, Any]
    shots: int | None = None


def full_index() -> TaskManager:
    """All of lm-eval's tasks, as its command line has them; about ten seconds."""
    return TaskManager()


def index_of(*folders: str) -> TaskManager:
    """lm-eval's tasks in some folders of its own, such as ``gsm8k``; fast."""
    root = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[root / folder for folder in folders], include_defaults=False)


def load_tasks(asked: Iterable[AskedTask], manager: TaskManager, source: Source) -> dict[str, Any]:
    """Tasks by name with their shots and seed set, as lm-eval's `simple_evaluate` sets them."""
    tasks: dict[str, Any] = {}
    with rows_from(source):
        for one in asked:
            for name, task in manager.load([one.spec])["tasks"].items():
                own = task.get_config("num_fewshot")
                if own is None or (one.shots is not None and own != 0):
                    task.set_config(key="num_fewshot", value=one.shots or 0)
                task.set_fewshot_seed(seed=FEWSHOT_SEED)
                tasks[name] = task
    return tasks


def run_tasks(lm: HFLM, tasks: dict[str, Any], limit: int | None, **chat: bool) -> dict[str, Any]:
    """Samples, as lm-eval logs them, of loaded tasks; the first `limit` of each.

    Args:
        chat: lm-eval's ``apply_chat_template`` and ``fewshot_as_multiturn``.
    """
    tasks_and_groups = {"tasks": tasks, "groups": {}, "group_map": {}}
    found = evaluate(lm, tasks_and_groups, limit=limit, bootstrap_iters=0, **chat)
    samples: dict[str, Any] = found["samples"]
    return samples


def reference(
    model: Any,
    tokenizer: Tokenizer,
    asked: Iterable[AskedTask],
    limit: int | None,
    *,
    source: Source,
    manager: TaskManager,
    batch_size: int = 4,
) -> Answers:
    """The answers of transformers' Llama `model`, driven by lm-eval."""
    tasks = load_tasks(asked, manager, source)
    return answers_of(run_tasks(TimedHFLM(model, tokenizer, batch_size), tasks, limit))


def timed_reference(
    model: Any, tokenizer: Tokenizer, asked: Iterable[AskedTask], limit: int | None,
    *, source: Source, batch_size: int,
) -> tuple[dict[str, float], Answers]:  # fmt: skip
    """Seconds of each part of an evaluation as lm-eval's command line makes it, and answers.

    ``index_s``: finding all tasks; ``load_s``: the rows; ``evaluate_s``: prompts, model, metrics;
    ``model_s``: what is inside of the model. Statistics by bootstrap are left out.
    """
    began = time.perf_counter()
    manager = full_index()
    indexed = time.perf_counter()
    tasks = load_tasks(asked, manager, source)
    lm = TimedHFLM(model, tokenizer, batch_size)
    loaded = time.perf_counter()
    found = answers_of(run_tasks(lm, tasks, limit))
    seconds = {
        "index_s": indexed - began,
        "load_s": loaded - indexed,
        "evaluate_s": time.perf_counter() - loaded,
        "model_s": lm.model_s,
    }
    return seconds, found
