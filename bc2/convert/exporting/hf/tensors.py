"""The tensors of a family, each rows of one of bc2's: queries, keys and values apart."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.exporting.target import SAFETENSORS, Dtype, RowChange, TargetTensor
from bc2.convert.exporting.target_rows import UNIT_ROWS
from bc2.convert.families import FAMILIES
from bc2.model.model_config import ModelConfig

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")


def stays_tied(config: ModelConfig) -> bool:
    """Whether the written head is the embedding: with NormHead only the head has unit rows."""
    return config.tied and not config.norm_head


def family_tensors(
    source: SourceModel, family: str, dtype: Dtype | None
) -> tuple[TargetTensor, ...]:
    """Every tensor that a family's model has; NormHead folded into the head's rows.

    Args:
        dtype: of all; None: each as it is stored.
    """
    return tuple(_tensors(source, family, dtype))


def _tensors(source: SourceModel, family: str, dtype: Dtype | None) -> Iterator[TargetTensor]:
    names = next(one.weights for one in FAMILIES if one.name == family)
    config = source.config
    unit = UNIT_ROWS if config.norm_head else None
    for name, stored in source.weights.items():
        layer = _LAYER.search(name)
        parts = names[_LAYER.sub("{n}", name)]
        first = 0
        for part, rows in zip(parts, _rows(config, stored.shape[0], len(parts)), strict=True):
            yield TargetTensor(
                part.format(n=layer[0] if layer else ""),
                SAFETENSORS[dtype] if dtype else stored.dtype,
                (rows, *stored.shape[1:]),
                name,
                first,
                unit if name == HEAD else None,
            )
            first += rows
    if config.tied_head and not stays_tied(config):
        yield _own_head(source, dtype, unit)


def _rows(config: ModelConfig, rows: int, parts: int) -> tuple[int, ...]:
    if parts == 1:
        return (rows,)
    keys = config.kv_heads * config.head_size
    return config.num_heads * config.head_size, keys, keys


def _own_head(source: SourceModel, dtype: Dtype | None, unit: RowChange | None) -> TargetTensor:
    table = source.weights[EMBEDDING]
    kind = SAFETENSORS[dtype] if dtype else table.dtype
    return TargetTensor(HEAD, kind, table.shape, EMBEDDING, change=unit)
