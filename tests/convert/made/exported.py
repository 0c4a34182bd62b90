"""A checkpoint written in a family's layout, by its plan alone, and what both sides say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from bc2.convert.exporting.hf.plan import plan_llama
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.store import load_model
from bc2.registry import Artifact

Plan = Callable[[SourceModel, Dtype | None, int], ExportPlan]


def write(
    artifact: Artifact,
    folder: Path,
    plan: Plan = plan_llama,
    dtype: Dtype | None = None,
    limit: int = 1 << 30,
) -> ExportPlan:
    """Write all files of a plan, each of the size that was planned."""
    folder.mkdir(parents=True)
    with SourceModel.open(artifact) as source:
        made = plan(source, dtype, limit)
        made.write(folder, source, made, lambda count: None)
    for name, data in made.texts.items():
        (folder / name).write_bytes(data)
    assert {name: (folder / name).stat().st_size for name in made.sizes} == made.sizes
    return made


def theirs(folder: Path) -> Any:
    """The model, as transformers loads it, in fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def their_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """[T, V]"""
    found: Tensor = model(torch.tensor([ids])).logits[0]
    return found


@torch.no_grad()
def our_logits(artifact: Artifact, ids: Sequence[int]) -> Tensor:
    """[T, V]"""
    model = load_model(artifact.path, dtype=torch.float32)
    ends = torch.tensor([0, len(ids)], dtype=torch.int32)
    return model.logits(model(torch.tensor(ids), ends, len(ids)))


def their_greedy(model: Any, ids: Sequence[int], count: int) -> list[int]:
    given = torch.tensor([ids])
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=count, pad_token_id=0,
        eos_token_id=model.config.vocab_size,  # of no row: None would be the model's own
    )  # fmt: skip
    made = model.generate(given, attention_mask=torch.ones_like(given), generation_config=settings)
    found: list[int] = made[0, len(ids) :].tolist()
    return found


def our_greedy(artifact: Artifact, ids: Sequence[int], count: int) -> list[int]:
    model = load_model(artifact.path, dtype=torch.float32)
    engine = InferenceEngine(model, EngineConfig(cache_bytes=2**25), eos_id=-1)
    settings = SamplingConfig(temperature=0.0, max_new_tokens=count)
    (answer,) = engine.generate([Request(list(ids), settings)])
    return list(answer.continuations[0].ids)
