"""The rows of merged tensors, from rows of every model: no tensor is ever held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.convert.exporting.source_model import SourceModel
from bc2.convert.merging.measures import Parts, ReadParts, gram, magnitudes_at, mean_cosine
from bc2.convert.merging.merge_config import OF_TASK_VECTORS, MergeConfig
from bc2.convert.merging.methods import (
    linear,
    model_stock,
    model_stock_factor,
    slerp,
    slerp_weights,
    task_arithmetic,
    ties,
)
from bc2.convert.ordered_work import in_order
from bc2.errors import DataError

#: Numbers that are read at once, of all models together: such as stay in a core's cache.
_AT_ONCE = 1 << 19

#: Rows of every model, in fp32 -> the merged ones.
MergeParts = Callable[[Sequence[Tensor]], Tensor]


class MergedRows:
    """Merged tensors, row by row.

    A NormHead's rows count by their direction alone, so those of unit length are merged; each gets
    the mean length of the models' rows, which decides how fast it learns on.

    Args:
        sources: the models, and their base last if the method has one.
        seen: told how many numbers were measured, before any is merged.
    """

    def __init__(self, config: MergeConfig, sources: Sequence[SourceModel]):
        self._config = config
        self._sources = sources
        self._count = len(config.models)
        self.shapes = {name: one.shape for name, one in sources[0].weights.items()}
        #: Of each tensor what its merge went by: cosine, factor.
        self.report: dict[str, dict[str, float]] = {}
        self._thresholds: list[float] | None = None

    @property
    def to_measure(self) -> int:
        """Numbers of each model that are looked at before any is merged."""
        whole = self._config.method == "ties" and self._config.trim == "model"
        # Twice: see `magnitudes_at`.
        return 2 * sum(map(prod, self.shapes.values())) if whole else 0

    def measure(self, seen: Callable[[int], object] = lambda count: None) -> None:
        """Find what the method must know of whole models, where there is something `to_measure`.

        Args:
            seen: told how many numbers of each model were looked at, again and again.
        """
        self._thresholds = self._magnitudes([*self.shapes], seen)

    def of(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """A merged tensor in pieces of a type.

        Raises:
            DataError: a model has NaN or infinity in it, the method does not work for it, or
                what it makes is too large for the type.
        """
        merge = self._merge_of(name)
        lengthwise = self._has_unit_rows(name)

        def merged(read: ReadParts) -> Tensor:
            made = self._merged_units(merge, read()) if lengthwise else merge(read())
            return rounded(name, made, dtype)

        return in_order(merged, self._blocks(name))

    def _merged_units(self, merge: MergeParts, parts: Parts) -> Tensor:
        """Rows of a NormHead: their directions merged, at their mean length."""
        lengths = [part.norm(dim=-1, keepdim=True) for part in parts[: self._count]]
        merged = F.normalize(merge([*map(_unit, parts)]), dim=-1, eps=1e-12)
        return merged * torch.stack(lengths).mean(0)

    def _merge_of(self, name: str) -> MergeParts:
        """The method, with what it must know of a whole tensor."""
        config = self._config
        if config.method == "linear":
            return partial(linear, weights=config.weights)
        if config.method == "slerp":
            return self._slerp(name, float(config.t or 0.0))
        if config.method == "model-stock":
            return self._model_stock(name)
        if config.method == "task-arithmetic":
            return lambda parts: task_arithmetic(
                parts[-1], parts[:-1], config.weights, config.scale
            )
        thresholds = self._thresholds or self._magnitudes([name])
        return lambda parts: ties(parts[-1], parts[:-1], thresholds, config.weights, config.scale)

    def _slerp(self, name: str, t: float) -> MergeParts:
        cosine = mean_cosine(gram(self._measured(name), 2))
        self.report[name] = {"cosine": cosine}
        try:
            slerp_weights(t, cosine)
        except ValueError as error:
            raise _refused(name, "slerp", error, "merge them with linear") from None
        return lambda parts: slerp(parts[0], parts[1], t, cosine)

    def _model_stock(self, name: str) -> MergeParts:
        cosine = mean_cosine(gram(self._measured(name), self._count))
        try:
            factor = model_stock_factor(cosine, self._count)
        except ValueError as error:
            todo = "leave out a model that was trained against the others, or take linear"
            raise _refused(name, "model-stock", error, todo) from None
        self.report[name] = {"cosine": cosine, "factor": factor}
        return lambda parts: model_stock(parts[-1], parts[:-1], factor)

    def _magnitudes(
        self, names: Sequence[str], seen: Callable[[int], object] = lambda count: None
    ) -> list[float]:
        """Of each model's task vector, the smallest number of the share that is kept."""
        size = sum(prod(self.shapes[name]) for name in names)
        ranks = [max(1, int(density * size)) for density in self._config.densities]

        def blocks() -> Iterator[ReadParts]:
            for name in names:
                yield from self._measured(name)
                seen(prod(self.shapes[name]))

        return magnitudes_at(blocks, ranks)

    def _measured(self, name: str) -> Iterator[ReadParts]:
        """What a method measures of a tensor: of task vectors, without the base."""
        return (partial(self._measured_part, name, read) for read in self._blocks(name))

    def _measured_part(self, name: str, read: ReadParts) -> Parts:
        parts = read()
        rows = [*map(_unit, parts)] if self._has_unit_rows(name) else parts
        if self._config.method in OF_TASK_VECTORS:
            return [part.sub_(rows[-1]) for part in rows[:-1]]
        return rows

    def _blocks(self, name: str) -> Iterator[ReadParts]:
        """The same rows of every model, as stored but in fp32."""
        rows, *rest = self.shapes[name]
        step = max(1, _AT_ONCE // (prod(rest) * len(self._sources)))
        for first in range(0, rows, step):
            yield partial(self._read, name, first, min(step, rows - first))

    def _read(self, name: str, first: int, count: int) -> Parts:
        return [_finite_rows(one, name, first, count) for one in self._sources]

    def _has_unit_rows(self, name: str) -> bool:
        return name == "lm_head.weight" and self._sources[0].config.norm_head


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1, eps=1e-12)


def _finite_rows(source: SourceModel, name: str, first: int, count: int) -> Tensor:
    rows = source.weights[name].rows(first, count).float()
    # A sum is quick, and nothing but an overflow is infinite in it alone.
    if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
        raise DataError(
            f"{name} of {source.artifact.title} holds NaN or infinity",
            where=str(source.weights[name].path),
            todo="take a checkpoint from before the training diverged",
        )
    return rows


def rounded(name: str, merged: Tensor, dtype: torch.dtype) -> Tensor:
    """Merged rows as they are stored. Raises: DataError: they are too large for the type."""
    stored = merged.to(dtype).contiguous()
    if not torch.isfinite(stored.sum(dtype=torch.float32)) and not torch.isfinite(stored).all():
        raise DataError(
            f"{name} becomes too large for {str(dtype).removeprefix('torch.')}: "
            f"{float(merged.abs().max()):g}",
            todo="lower merge.scale or the weights, or store it with merge.dtype = 'fp32'",
        )
    return stored


def _refused(name: str, method: str, error: ValueError, todo: str) -> DataError:
    return DataError(f"{method} cannot merge {name}: {error}", where=name, todo=todo)


def facts_of(report: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A report as it is recorded: six digits are more than cosines of fp32 have to say."""
    return {
        name: {what: float(f"{value:.6g}") for what, value in found.items()}
        for name, found in report.items()
    }
