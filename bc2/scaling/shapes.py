"""The shape of a decoder of about a wanted size: layers, heads, FFN."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bc2.errors import UsageError
from bc2.model.model_config import ModelConfig

#: The sizes for which shapes are offered, non-embedding parameters.
SMALLEST, LARGEST = 1e5, 2e12

#: Width over layers: 64 at 10M parameters and 128 at 6.5B, as Baichuan 2's ladder and its 7B are.
_ASPECT, _ASPECT_AT, _ASPECT_GROWTH = 64.0, 1e7, 0.107

#: How much a shape may be out of proportion: a factor of two costs as much as this share of size.
_PROPORTION = 0.05


def nearest_shape(params: float, vocab_size: int, *, total: bool = False) -> ModelConfig:
    """The shape nearest to a size: heads of 128 channels (fewer where narrower), FFN of 8/3 of the
    width rounded up to a multiple of 128 (Baichuan 2, section 2.4).

    Args:
        params: parameters wanted.
        vocab_size: rows of the embedding.
        total: whether `params` counts embedding and head.

    Raises:
        UsageError: there is no sensible shape of this size.
    """
    if not SMALLEST <= params <= LARGEST:
        raise _no_shape(params)

    def distance(candidate: _Candidate) -> float:
        ideal = _ASPECT * (candidate.inner / _ASPECT_AT) ** _ASPECT_GROWTH
        proportion = abs(math.log2(candidate.width / candidate.layers / ideal))
        return abs(math.log(candidate.size(total) / params)) + _PROPORTION * proportion

    found = min(_candidates(vocab_size), key=distance)
    if abs(math.log(found.size(total) / params)) > 0.25:
        raise _no_shape(params)
    best = _of(found.width, found.layers, vocab_size)
    return ModelConfig.model_validate(best.model_dump())


def _no_shape(params: float) -> UsageError:
    return UsageError(
        f"no shape has about {params:.3g} parameters",
        where="--budget",
        todo=f"take a budget whose best size is between {SMALLEST:.0g} and {LARGEST:.0g}",
    )


@dataclass(frozen=True)
class _Candidate:
    width: int
    layers: int
    inner: int
    """Parameters without embedding and head."""
    outer: int
    """Those of embedding and head."""

    def size(self, total: bool) -> int:
        return self.inner + self.outer if total else self.inner


def _candidates(vocab_size: int) -> Iterator[_Candidate]:
    """Every shape with its size, which is linear in the layers: two shapes tell a width's."""
    widths = [*range(64, 512, 32), *range(512, 1024, 64), *range(1024, 4096, 128)]
    for width in [*widths, *range(4096, 32769, 256)]:
        one, two = (_of(width, layers, vocab_size) for layers in (1, 2))
        first = one.num_params_non_embedding()
        each = two.num_params_non_embedding() - first
        outer = one.num_params() - first
        for layers in range(2, 161):
            if 16 <= width / layers <= 320:
                yield _Candidate(width, layers, first + (layers - 1) * each, outer)


def _of(width: int, layers: int, vocab_size: int) -> ModelConfig:
    channels = 128 if width % 128 == 0 and width >= 1024 else 64 if width % 64 == 0 else 32
    # Not validated: there are thousands of candidates.
    return ModelConfig.model_construct(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 128) * 128,
        num_layers=layers,
        num_heads=width // channels,
    )
