"""What `bc2 data lint` counts of pairs, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LengthBias:
    """How often the longer answer is the better one."""

    group: str
    """Which pairs: "all", a source, or a gap of scores."""
    pairs: int
    prompts: int
    ties: int
    """Pairs of which both answers have as many tokens: in `longer_wins` each is half a win."""
    longer_wins: float
    """Share of pairs."""
    interval: tuple[float, float] | None
    """95% of 1,000 resamplings of prompts; None: of one prompt there is none."""


@dataclass(frozen=True)
class ScoreFigures:
    """The scores of one source's answers."""

    source: str
    answers: int
    """Those of its pairs, each once."""
    lowest: float
    highest: float
    mean: float
    distinct: int
    """Different scores."""
    histogram: tuple[tuple[float, float, int], ...]
    """From, to, answers: tenths of the range, the upper edge belongs to the next one."""
    gaps: tuple[LengthBias, ...]
    """Pairs by the fifth of the range that their scores are apart."""


@dataclass(frozen=True)
class CutPairs:
    """What would become of the pairs in a program that cuts answers at a length."""

    tokens: int
    """The length, with the prompt."""
    cut: int
    """Pairs of which an answer is longer."""
    identical: int
    """Those of them whose answers would be the same then: the loss is ln 2, without a gradient."""


@dataclass(frozen=True)
class PairFigures:
    """What only pairs have."""

    prompts: Mapping[str, int]
    """By split."""
    answers: Mapping[str, int]
    """By split."""
    pairs_per_prompt: Mapping[str, float]
    """mean, min, median, p95, max."""
    length_bias: tuple[LengthBias, ...]
    """Of all pairs, and of each source where there are several. By tokens of the answers, of the
    pairs that can be trained on."""
    scores: tuple[ScoreFigures, ...]
    """Of sources that have scores."""
    cut: tuple[CutPairs, ...]
    """At powers of two of tokens."""
    evaluation_prompts: Mapping[str, int]
    """Prompts with words of a benchmark, by benchmark."""
