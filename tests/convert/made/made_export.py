"""A conversion to transformers' layout by a plan made here: what goes out is what came in.

The models are those of `made_hf_models`, imported; configuration and tokenizer are the originals'
own files, so that nothing of the writers of formats is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from made_hf_models import original

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import SAFETENSORS, Dtype, ExportPlan, TargetTensor
from bc2.convert.exporting.target_rows import UNIT_ROWS
from bc2.convert.exporting.write_safetensors import planned_sizes, write_safetensors
from bc2.convert.importing.import_model import import_model
from bc2.generate.model_settings import own_end_ids
from bc2.registry import Registry

_TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


@contextmanager
def imported(name: str, folder: Path) -> Iterator[SourceModel]:
    """A model of `made_hf_models`, as bc2 holds it; its files are in ``folder/NAME``."""
    if not (folder / name).exists():
        original(name).write(folder / name)
    artifact = import_model(Registry.open(folder / "home"), folder / name)
    with SourceModel.open(artifact) as source:
        yield source


def plan_back(source: SourceModel, there: Path, dtype: Dtype | None = None) -> ExportPlan:
    """To the layout that it came from.

    Args:
        there: the folder that it came from.
    """
    dtype = dtype or source.dtype
    tensors = tuple(_tensors(source, SAFETENSORS[dtype]))
    texts = {name: (there / name).read_bytes() for name in _TEXTS if (there / name).is_file()}
    for name in ("config.json", "generation_config.json"):
        texts[name] = _with_ends(texts.get(name, b"{}"), source)
    sizes = planned_sizes(tensors, 1 << 30)
    return ExportPlan(
        "llama", dtype, tensors, sizes, write_safetensors, 1 << 30, texts, prover="transformers"
    )


def _with_ends(text: bytes, source: SourceModel) -> bytes:
    """A file that ends answers where the layout does, which the originals leave to who asks."""
    ends = own_end_ids(source.tokenizer, source.chat, source.generation, source.artifact)
    return json.dumps({**json.loads(text), "eos_token_id": list(ends)}).encode()


def _tensors(source: SourceModel, dtype: str) -> Iterator[TargetTensor]:
    config = source.config
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    for name, stored in source.weights.items():
        rest = stored.shape[1:]
        if "W_pack" in name:
            first = 0
            for part, rows in (("q", queries), ("k", keys), ("v", keys)):
                there = name.replace("W_pack", f"{part}_proj")
                yield TargetTensor(there, dtype, (rows, *rest), name, first)
                first += rows
        elif name == "lm_head.weight" and config.norm_head:
            yield TargetTensor(name, dtype, stored.shape, name, change=UNIT_ROWS)
        else:
            yield TargetTensor(name, dtype, stored.shape, name)


@dataclass(frozen=True)
class Held:
    """A model, and the folder that it was imported from."""

    source: SourceModel
    there: Path

    def plan(self, dtype: Dtype | None = None) -> ExportPlan:
        return plan_back(self.source, self.there, dtype)


def write(plan: ExportPlan, source: SourceModel, folder: Path) -> Path:
    """Texts and weights, as a conversion writes them."""
    folder.mkdir()
    for name, text in plan.texts.items():
        (folder / name).write_bytes(text)
    plan.write(folder, source, plan, lambda count: None)
    return folder
