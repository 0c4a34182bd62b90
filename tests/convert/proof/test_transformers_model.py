"""transformers beside ours, in this process: right folders pass, and each wrong one is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import made_export
import pytest
import torch
from made_export import Held

from bc2.convert.exporting.target import Dtype, ExportPlan, TargetTensor
from bc2.convert.proof.bounds import bounds_of
from bc2.convert.proof.compare_model import Questions, Said, compare
from bc2.convert.proof.compare_texts import compare_chat, compare_texts
from bc2.convert.proof.our_model import OurModel, Rounding
from bc2.convert.proof.transformers_model import TransformersModel
from bc2.errors import RunFailed

HeldModel = Callable[[str], Held]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def said(held: Held, plan: ExportPlan, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What is found of a written folder's numbers."""
    source = held.source
    texts = ["The same text for both of them, 两边一样的文字。" * 4]
    questions = Questions.of(texts, source.tokenizer, 32, source.config.vocab_size)
    sent = json.dumps(Rounding.of(source, plan, folder).to_json())
    rounding = Rounding.from_json(json.loads(sent))
    ours = Said.by(OurModel(rounding), questions, margins=True)
    theirs = Said.by(TransformersModel(str(folder), remote_code=False), questions)
    return compare(ours, theirs, questions, bounds_of(plan.dtype), ())


def edited(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("name", "dtype"), [("llama3", "fp32"), ("qwen2-yarn", "bf16"), ("qwen3", "fp16")]
)
def test_the_same_model(held: HeldModel, tmp_path: Path, name: str, dtype: Dtype) -> None:
    one = held(name)
    plan = one.plan(dtype)
    facts, problems = said(one, plan, made_export.write(plan, one.source, tmp_path / "out"))
    assert problems == []
    assert facts["greedy_tokens"] == 4 * 16
    # Ours are the rounded weights: of others the bound would not be kept.
    if dtype == "bf16":
        plain = replace(one.plan("fp32"), dtype="bf16")
        assert said(one, plain, tmp_path / "out")[1] != []


def test_another_theta(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama-tied")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    assert said(one, plan, folder)[1] == []
    edited(folder, rope_parameters={"rope_type": "default", "rope_theta": 20000.0})
    problems = said(one, plan, folder)[1]
    assert problems[0].startswith("log-probabilities differ by")


def test_swapped_queries_and_keys(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama-tied")
    first = {"q_proj": 64, "k_proj": 0}  # of the packed matrix, which has 64 rows of each

    def swapped(target: TargetTensor) -> TargetTensor:
        part = target.name.split(".")[-2]
        if "layers.1" not in target.name or part not in first:
            return target
        return replace(target, first=first[part])

    plan = one.plan()
    wrong = replace(plan, tensors=tuple(map(swapped, plan.tensors)))
    folder = made_export.write(wrong, one.source, tmp_path / "out")
    assert said(one, plan, folder)[1][0].startswith("log-probabilities differ by")


def test_weights_that_are_missing(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = one.plan()
    less = replace(plan, tensors=tuple(t for t in plan.tensors if "layers.1.mlp" not in t.name))
    folder = made_export.write(less, one.source, tmp_path / "out")
    with pytest.raises(RunFailed, match=r"missing_keys: model.layers.1.mlp"):
        TransformersModel(str(folder), remote_code=False)


def test_other_merges_and_another_template(held: HeldModel, tmp_path: Path) -> None:
    one = held("llama3")
    plan = one.plan()
    folder = made_export.write(plan, one.source, tmp_path / "out")
    texts = ["the theatre, and other texts of the thing", "你好"]
    tokenizer, chat = one.source.tokenizer, one.source.chat
    model = TransformersModel(str(folder), remote_code=False)
    assert compare_texts(tokenizer, model, texts, "transformers")[1] == []
    assert compare_chat(chat, model)[0]["conversations"] == 10
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["merges"] = []
    path.write_text(json.dumps(data))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": settings["chat_template"] + " "}))
    model = TransformersModel(str(folder), remote_code=False)
    assert compare_texts(tokenizer, model, texts, "transformers")[1] != []
    assert compare_chat(chat, model)[1][0].startswith("the conversation 'Hello!' is other tokens")
