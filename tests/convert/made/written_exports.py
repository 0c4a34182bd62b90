"""Conversions written into a folder without a registry or a proof, and loaded by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from bc2.convert.exporting.baichuan import plan_baichuan
from bc2.convert.exporting.quantize import Quantization, quantized
from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import Dtype, ExportPlan
from bc2.registry import Artifact

#: More than any made model has.
LIMIT = 1 << 30


def write_baichuan(
    folder: Path,
    artifact: Artifact,
    dtype: Dtype | None = None,
    limit: int = LIMIT,
    kind: Quantization | None = None,
) -> ExportPlan:
    """Write what ``--to baichuan`` plans into a folder that is not there yet."""
    folder.mkdir(parents=True)
    with SourceModel.open(artifact) as source:
        plan = plan_baichuan(source, dtype, limit)
        if kind is not None:
            plan = quantized(plan, source, kind)
        for name, data in plan.texts.items():
            (folder / name).write_bytes(data)
        plan.write(folder, source, plan, lambda count: None)
    found = {path.name: path.stat().st_size for path in folder.glob("*.safetensors*")}
    assert found == dict(plan.sizes)
    return plan


def modules_in(folder: Path) -> Callable[[], None]:
    """Have transformers copy code of models into a folder; undone by what is returned."""
    patch = pytest.MonkeyPatch()
    patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    patch.syspath_prepend(str(folder))
    return patch.undo


def load(folder: Path, **options: Any) -> Any:
    """The model of a folder, by transformers; every weight must be there."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True,
        **{"dtype": torch.float32, **options},
    )  # fmt: skip
    assert not any(found.values()), found
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers."""
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
