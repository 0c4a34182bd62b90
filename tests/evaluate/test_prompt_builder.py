"""Prompts are lm-eval's requests, encoded as its `hf` model encodes them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import DataError
from bc2.evaluate.encoding import PromptEncoder
from bc2.evaluate.prompt_builder import build_prompts
from bc2.evaluate.prompts import Prompt, TaskPrompts
from bc2.evaluate.suite_prompts import SuitePrompts
from bc2.tokenizer.tokenizer import Tokenizer


def lm_evals(prompts: SuitePrompts, name: str) -> Any:
    """The instances of lm-eval's own `build_all_requests`."""
    task = prompts.rows.load(prompts.settings.shots, prompts.settings.seed).tasks[name]
    task.build_all_requests()
    return task.instances


def requests_of(prompt: Prompt) -> list[tuple[list[int], list[int]]]:
    return [(list(prompt.contexts[at]), list(ids)) for at, ids in prompt.asked]


def pair(tokenizer: Tokenizer, context: str, text: str) -> tuple[list[int], list[int]]:
    """As lm-eval's `_encode_pair`."""
    kept = context.rstrip()
    whole = tokenizer.encode(context + text)
    size = len(tokenizer.encode(kept))
    return whole[:size], whole[size:]


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("mmlu", "mmlu_anatomy"), ("cmmlu", "cmmlu_agronomy"), ("medmcqa", "medmcqa"),
        ("gsm8k", "gsm8k"), ("bbh", "bbh_cot_fewshot_navigate"), ("humaneval", "bc2_humaneval"),
    ],
)  # fmt: skip
def test_prompts_are_lm_evals(make_prompts: Any, suite: str, name: str) -> None:
    made = make_prompts(suite)
    (task,) = [one for one in made.tasks if one.task == name]
    found = made.file(task).read(0, task.samples)
    instances = lm_evals(made, name)
    assert len(found) == task.samples == len(made.loaded.tasks[name].eval_docs)
    for prompt in found:
        own = [one for one in instances if one.doc_id == prompt.doc_id]
        assert prompt.digest == hashlib.sha256(own[0].args[0].encode()).hexdigest()
        if task.kind == "generate":
            (only,) = own
            assert requests_of(prompt) == [(made.tokenizer.encode(only.args[0]), [])]
        else:
            assert requests_of(prompt) == [pair(made.tokenizer, *one.args) for one in own]
            assert len(prompt.contexts) == 1, "the context is stored once"
        alone = made.loaded.tasks[name].doc_to_text(own[0].doc)
        assert prompt.question_tokens == len(made.tokenizer.encode(alone))


@pytest.mark.parametrize("suite", ["gsm8k", "medmcqa", "cmmlu", "mbpp"])
def test_the_first_prompts_are_the_same_whatever_the_limit(
    make_prompts: Any, tmp_path: Path, suite: str
) -> None:
    """Also where shots are drawn for each question, and where the task was used before."""
    few, every = make_prompts(suite, limit=2), make_prompts(suite)
    every = SuitePrompts(every.rows, every.settings, every.tokenizer, tmp_path / "other")
    used = few.file(few.tasks[-1])  # of another task, or this one a first time
    assert used is not None
    task, whole = few.tasks[0], every.tasks[0]
    assert task.samples == 2
    expected = every.file(whole).read(0, 2)
    assert few.file(task).read(0, 2) == expected
    again = build_prompts(
        few.loaded.tasks[task.task], PromptEncoder(few.tokenizer, prefix_id=2), 2, 1234
    )
    assert [one.digest for one in again] == [one.digest for one in expected]


def test_another_seed_draws_other_shots(make_prompts: Any) -> None:
    one, other = make_prompts("gsm8k"), make_prompts("gsm8k", seed=7)
    assert one.store.folder != other.store.folder
    (task,) = one.tasks
    digests = [[digest for _, digest, _ in each.file(task).heads()] for each in (one, other)]
    assert digests[0] != digests[1]


ROWS = [{"question": "Two stones?", "label": 1}, {"question": "Has she three?", "label": 0}]


def own_task(tmp_path: Path, **config: Any) -> Any:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_list(ROWS)
    return ConfigurableTask(
        config={
            "task": "made", "custom_dataset": lambda **_: {"test": rows}, "test_split": "test",
            "doc_to_text": "{{question}}", "doc_to_target": "{{label}}", "num_fewshot": 0,
            "metadata": {"version": 0}, **config,
        }
    )  # fmt: skip


def built(task: Any, tokenizer: Tokenizer, prefix_id: int = 2) -> list[Prompt]:
    return list(build_prompts(task, PromptEncoder(tokenizer, prefix_id=prefix_id), 2, 1234))


def test_choices_with_contexts_of_their_own(tmp_path: Path, made_tokenizer: Tokenizer) -> None:
    """Winogrande's form, and answers that are scored without their question too."""
    task = own_task(
        tmp_path, output_type="multiple_choice", doc_to_choice=["yes she", "no she"],
        metric_list=[{"metric": "acc"}, {"metric": "acc_mutual_info"}],
    )  # fmt: skip
    prompts = built(task, made_tokenizer)
    asked = requests_of(prompts[0])
    task.build_all_requests()
    texts = [one.args for one in task.instances if one.doc_id == 0]
    assert [text for text, _ in texts] == ["Two stones?", "Two stones?", "", ""]
    assert asked[:2] == [pair(made_tokenizer, *text) for text in texts[:2]]
    assert asked[2:] == [([2], made_tokenizer.encode(text)) for _, text in texts[2:]]
    assert len(prompts[0].contexts) == 2


def test_a_whole_text(tmp_path: Path, made_tokenizer: Tokenizer) -> None:
    task = own_task(
        tmp_path, output_type="loglikelihood_rolling", doc_to_target="{{question}}",
        doc_to_text="", metric_list=[{"metric": "byte_perplexity"}],
    )  # fmt: skip
    prompts = built(task, made_tokenizer)
    assert [requests_of(one) for one in prompts] == [
        [([], made_tokenizer.encode(row["question"]))] for row in ROWS
    ]


def test_a_continuation_without_tokens_names_its_sample(
    tmp_path: Path, made_tokenizer: Tokenizer
) -> None:
    task = own_task(
        tmp_path, output_type="multiple_choice", doc_to_choice="{{['a', 'b' if label else '']}}",
        metric_list=[{"metric": "acc"}], target_delimiter="",
    )  # fmt: skip
    with pytest.raises(DataError, match="the continuation '' has no tokens") as info:
        built(task, made_tokenizer)
    assert info.value.where == "made:1"


def test_kinds_are_recorded_for_all_suites(make_prompts: Any) -> None:
    kinds = {
        name: {task.kind for task in make_prompts(name).tasks}
        for name in ("mmlu", "gsm8k", "humaneval")
    }
    assert kinds == {"mmlu": {"score"}, "gsm8k": {"generate"}, "humaneval": {"generate"}}
    (task,) = make_prompts("gsm8k").tasks
    assert isinstance(task, TaskPrompts)
    assert task.generation["until"] == ["Question:", "</s>", "<|im_end|>"]
