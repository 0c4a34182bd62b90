"""The formats that a checkpoint is written in. One is a row here; its module is imported late."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bc2.errors import UsageError, nearest

if TYPE_CHECKING:
    from bc2.convert.exporting.source_model import SourceModel
    from bc2.convert.exporting.target import Dtype, ExportPlan
    from bc2.model.model_formulas import HeadKind

    PlanExport = Callable[[SourceModel, Dtype | None, int], ExportPlan]

_ROUNDED = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Format:
    """A format by what it is for."""

    help: str
    module: str
    """``module:function`` below this package, of a `PlanExport`."""
    dtypes: tuple[str, ...] = _ROUNDED
    quantizes: bool = False
    """Whether bitsandbytes' formats are for it."""
    any_head: bool = False
    """Whether a model without a language head can be written so."""
    only_speaks: bool = False
    """Whether there is no place for a model with a scalar head, a sequence classifier."""

    def takes(self, head: HeadKind) -> bool:
        """Whether there is a place for a model with such a head."""
        if head == "scalar":
            return not self.only_speaks
        return head == "language" or self.any_head

    @property
    def plan(self) -> PlanExport:
        """Plans a conversion; raises UsageError where the model does not fit the format."""
        module, _, name = self.module.partition(":")
        found: Any = getattr(importlib.import_module(f"bc2.convert.exporting.{module}"), name)
        plan: PlanExport = found
        return plan


FORMATS: dict[str, Format] = {
    "baichuan": Format(
        "Baichuan 2's released layout, with code of its own: RoPE or ALiBi.",
        "baichuan:plan_baichuan", quantizes=True,
    ),
    "llama": Format(
        "Stock transformers and vLLM; another family where the model needs it.",
        "hf.plan:plan_llama", quantizes=True,
    ),
    "mistral": Format("Mistral, for its window.", "hf.plan:plan_mistral", quantizes=True),
    "qwen2": Format("Qwen2: queries, keys, values biased.", "hf.plan:plan_qwen2", quantizes=True),
    "qwen3": Format("Qwen3: norms of queries and keys.", "hf.plan:plan_qwen3", quantizes=True),
    "gguf": Format(
        "llama.cpp and its like.", "gguf.plan:plan_gguf", (*_ROUNDED, "q8_0"),
        only_speaks=True,
    ),
    "safetensors": Format("The weights alone.", "bare_weights:plan_bare_weights", any_head=True),
}  # fmt: skip


def format_named(name: str) -> Format:
    """A format. Raises: UsageError: there is none; the nearest one is named."""
    if name not in FORMATS:
        guess = nearest(name.lower(), FORMATS)
        raise UsageError(
            f"no such format: {name!r}",
            where="--to",
            todo=f"did you mean {guess!r}?" if guess else f"there are: {', '.join(FORMATS)}",
        )
    return FORMATS[name]
