"""Which of a family's tensors each of bc2's is made of: every one accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bc2.convert.families import Family
from bc2.convert.stored_tensor import StoredTensor
from bc2.errors import DataError, nearest
from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes

#: What weights may be stored as.
FLOATS = ("F32", "BF16", "F16")

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")

#: Names of tensors that quantised weights come with.
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|SCB|absmax|quant_(map|state).*)$"
)


def plan_weights(
    stored: Mapping[str, StoredTensor], family: Family, config: ModelConfig, where: str
) -> dict[str, list[StoredTensor]]:
    """By bc2's name, the tensors whose rows one after the other are that tensor.

    Args:
        stored: the tensors of the model's files.
        where: the folder, for errors.

    Raises:
        DataError: one is missing, unknown, quantised, or not of the shape that `config` says.
    """
    _check_types(stored, where)
    if config.num_layers > len(stored):  # before so many are laid out
        raise DataError(
            f"{config.num_layers:,} layers by config.json, and {len(stored):,} tensors",
            where=where,
            todo="take config.json and weights of the same model",
        )
    parts = _parts_by_name(family, config)
    _check_names(stored, parts, family, config, where)
    made: dict[str, list[StoredTensor]] = {}
    for name, shapes in parts.items():
        made[name] = []
        for part, shape in shapes.items():
            if stored[part].shape != shape:
                raise DataError(
                    f"{part} is {list(stored[part].shape)}, and {list(shape)} by config.json",
                    where=where,
                )
            made[name].append(stored[part])
        types = {one.dtype for one in made[name]}
        if len(types) > 1:
            raise DataError(
                f"{', '.join(shapes)} are of different types: {', '.join(sorted(types))}",
                where=where,
                todo="save the model again in one type",
            )
    return made


def _parts_by_name(family: Family, config: ModelConfig) -> dict[str, dict[str, tuple[int, ...]]]:
    """By bc2's name, the family's names of its parts, each with the shape that it must have."""
    keys = config.kv_heads * config.head_size
    queries = config.num_heads * config.head_size
    found = {}
    for name, shape in expected_shapes(config).items():
        layer = _LAYER.search(name)
        names = family.weights[_LAYER.sub("{n}", name)]
        rows = (queries, keys, keys) if len(names) == 3 else (shape[0],)
        found[name] = {
            part.format(n=layer[0] if layer else ""): (count, *shape[1:])
            for part, count in zip(names, rows, strict=True)
        }
    return found


def _check_types(stored: Mapping[str, StoredTensor], where: str) -> None:
    for name, tensor in stored.items():
        if _QUANTISED.search(name) or (
            tensor.dtype not in (*FLOATS, "F64") and name.endswith(".weight")
        ):
            raise DataError(
                f"{name} is {tensor.dtype}: the weights are quantised",
                where=where,
                todo="import the model that they were made from",
            )
        if tensor.dtype not in FLOATS and not name.endswith("inv_freq"):
            raise DataError(f"{name} is {tensor.dtype}, none of {', '.join(FLOATS)}", where=where)


def _check_names(
    stored: Mapping[str, StoredTensor],
    parts: Mapping[str, Mapping[str, tuple[int, ...]]],
    family: Family,
    config: ModelConfig,
    where: str,
) -> None:
    expected = {part for shapes in parts.values() for part in shapes}
    missing = sorted(expected - stored.keys())
    if missing:
        todo = "fetch the whole model again"
        if missing == ["lm_head.weight"]:
            todo = 'if its head is the embedding, write "tie_word_embeddings": true in config.json'
        raise DataError(f"missing: {_some(missing)}", where=where, todo=todo)
    layers = [str(n) for n in range(config.num_layers)]
    follow = {name.format(n=n) for name in family.buffers for n in layers}
    if config.tied:
        follow.add("lm_head.weight")
    unknown = sorted(stored.keys() - expected - follow)
    if unknown:
        guess = nearest(unknown[0], expected)
        raise DataError(
            f"unknown in a {family.name} of {config.num_layers} layers: {_some(unknown)}",
            where=where,
            todo=f"the nearest is {guess}" if guess else None,
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def check_tied(stored: Mapping[str, StoredTensor], config: ModelConfig, where: str) -> None:
    """A head that is said to be the embedding, and is stored all the same, must be it.

    Raises:
        DataError: it is another matrix.
    """
    head, table = stored.get("lm_head.weight"), stored.get("model.embed_tokens.weight")
    if not config.tied or head is None or table is None:
        return
    same = (head.dtype, head.shape) == (table.dtype, table.shape) and (
        (head.path, head.offset) == (table.path, table.offset)
        or all(one == other for one, other in zip(head.chunks(), table.chunks(), strict=True))
    )
    if not same:
        raise DataError(
            "lm_head.weight is not the embedding, and tie_word_embeddings is true",
            where=where,
            todo='write "tie_word_embeddings": false in config.json if the head is its own',
        )
