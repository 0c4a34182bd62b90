"""What lies beside the weights: each wrong word is found, also where no program would show it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import made_export
import pytest
import small_checkpoints
from gguf import GGUFWriter

from bc2.convert.exporting.formats import format_named
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import ExportPlan
from bc2.convert.proof.transformers_model import TransformersModel
from bc2.convert.proof.written_facts import check_facts
from bc2.errors import RunFailed
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.registry import Registry

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[SourceModel]:
    defaults = GenerationDefaults(top_k=5, top_p=0.5, end_ids=(7,))
    artifact = small_checkpoints.checkpoint(
        Registry.open(tmp_path / "home"), generation=defaults, layout="baichuan"
    )
    with SourceModel.open(artifact) as source:
        yield source


def _planned(source: SourceModel, form: str) -> ExportPlan:
    return format_named(form).plan(source, None, 1 << 30)


def _changed(plan: ExportPlan, file: str, change: Change) -> ExportPlan:
    data = json.loads(plan.texts[file])
    change(data)
    return replace(plan, texts={**plan.texts, file: json.dumps(data).encode()})


@pytest.mark.parametrize("form", ["llama", "baichuan", "gguf", "safetensors"])
def test_what_is_written_says_the_model(source: SourceModel, tmp_path: Path, form: str) -> None:
    plan = _planned(source, form)
    folder = made_export.write(plan, source, tmp_path / "out")
    assert check_facts(folder, source, plan) == []


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"rope_theta": 20000.0}, "rope_theta is 20000.0 and in rope_parameters"),
        ("config.json", {"max_position_embeddings": 99}, "context_length = 99, and the model has"),
        ("config.json", {"tie_word_embeddings": True}, "tied = True, and the model has False"),
        ("config.json", {"eos_token_id": 5}, "config.json ends answers at 5"),
        ("generation_config.json", {"eos_token_id": [2, 5]}, r"ends answers at \[2, 5\]"),
        ("generation_config.json", {"eos_token_id": 2}, "ends answers at 2, and ours end at"),
        ("generation_config.json", {"top_k": 6}, "draws with .*'top_k': 6"),
        ("tokenizer_config.json", {"eos_token": "<s>"}, r"answers end at \[1, 2, 7\]"),
    ],
)
def test_a_wrong_word(
    source: SourceModel, tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    plan = _changed(_planned(source, "llama"), file, lambda data: data.update(change))
    folder = made_export.write(plan, source, tmp_path / "out")
    problems = "; ".join(check_facts(folder, source, plan))
    assert re.search(said, problems), problems


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("eos_token_id", r"eos_token_id is 5, and the model has 2"),
        ("eot_token_id", r"ends answers at \[2, 5\]"),
        ("unk_token_id", r"unknown_token_id is 5, and the model has 0"),
        ("layer_norm_rms_eps", r"layer_norm_rms_epsilon is 0\.25, and the model has 1e-06"),
        ("rope_freq_base", r"freq_base is 0\.25, and the model has 10000"),
    ],
)
def test_a_wrong_word_of_a_gguf_file(
    source: SourceModel, tmp_path: Path, key: str, said: str
) -> None:
    right: Callable[[GGUFWriter, float], None] = getattr(GGUFWriter, f"add_{key}")
    value = 5 if key.endswith("_id") else 0.25
    with mock.patch.object(GGUFWriter, f"add_{key}", lambda writer, _: right(writer, value)):
        plan = _planned(source, "gguf")
    folder = made_export.write(plan, source, tmp_path / "out")
    problems = "; ".join(check_facts(folder, source, plan))
    assert re.search(said, problems), problems


def test_ids_that_the_table_has_not(source: SourceModel, tmp_path: Path) -> None:
    plan = _planned(source, "llama")
    wrong = _changed(plan, "tokenizer_config.json", lambda data: data.update(pad_token="<new>"))
    folder = made_export.write(wrong, source, tmp_path / "out")
    with pytest.raises(RunFailed, match="its tokenizer has 641 ids, and its table 640 rows"):
        TransformersModel(str(folder), remote_code=False)
