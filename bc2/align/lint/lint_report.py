"""What `bc2 data lint` finds, as data: errors, figures, and what was proven of packing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bc2.align.lint.pair_report import PairFigures
from bc2.data.splits import Split


@dataclass(frozen=True)
class Place:
    """One conversation or pair that something is said of."""

    source: str
    file: str
    row: int
    """From 1."""
    split: Split
    index: int
    """Its place in the split, from 0."""
    why: str


@dataclass(frozen=True)
class Finding:
    """Conversations or pairs of which the same is to be said."""

    code: str
    says: str
    """What is wrong with each, or worth knowing."""
    count: int
    policy: str
    """What the recipe does with them: "stop", "drop", "rounds" (keep the first), or "" (nothing,
    they are trained on)."""
    by_source: Mapping[str, int]
    examples: tuple[Place, ...]
    """The first of them."""

    @property
    def is_error(self) -> bool:
        """Whether training stops at them."""
        return self.policy == "stop" and self.count > 0


@dataclass(frozen=True)
class Lengths:
    """How long samples are, in tokens up to the last that is learnt; pairs are both answers."""

    quantiles: Mapping[str, int]
    """min, p5, p25, median, p75, p95, p99, max."""
    mean: float
    histogram: tuple[tuple[int, int, int], ...]
    """From, to before, samples."""
    tokens: int
    trained: int
    """Tokens that are learnt."""
    fully_trained: int
    """Samples of which every token is learnt."""

    @property
    def trained_share(self) -> float:
        """Of all tokens."""
        return self.trained / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class Packing:
    """An epoch packed into rows."""

    rows: int
    sequence_length: int
    samples: int
    filled: float
    """Share of positions that hold a sample."""


@dataclass(frozen=True)
class SourceFigures:
    """One source of conversations or pairs."""

    name: str
    formats: tuple[str, ...]
    rows: int
    """Conversations, or pairs."""
    times: float
    """How often an epoch reads each."""
    samples: int
    """Those of them that are trained on."""
    tokens: int
    trained: int
    copies: int
    """Those that the source has said before, word for word."""
    languages: Mapping[str, int]
    """Conversations, or answers, by ISO 639 code, most first."""
    skipped: Mapping[str, int]
    """Rows that gave none, by reason."""
    made: bool
    """Whether they were made by bc2."""
    licence: str | None


@dataclass(frozen=True)
class BenchmarkFound:
    """Words of one benchmark in the conversations or pairs."""

    benchmark: str
    texts: int
    """Texts of it that were searched for."""
    found: int
    """Those of them that were found."""
    rows: int
    """Conversations or pairs that have some."""
    examples: tuple[Place, ...]


@dataclass(frozen=True)
class Overlaps:
    """Which benchmarks were searched for, and what was found."""

    benchmarks: tuple[BenchmarkFound, ...]
    missing: tuple[str, ...]
    """Benchmarks that do not lie on this machine: never searched for."""
    unreadable: Mapping[str, str]
    """Benchmarks that cannot be read, and why: never searched for."""

    @property
    def rows(self) -> int:
        """Those with words of a benchmark, each counted once for each benchmark."""
        return sum(one.rows for one in self.benchmarks)


@dataclass(frozen=True)
class PackingProof:
    """What a small model of the recipe's kind computed of rows of the user's own samples."""

    rows: int
    samples: int
    tokens: int
    model: str
    """What the model is, in words."""
    loss_difference: float
    """Largest relative difference of a sample's loss, packed and alone."""
    gradient_difference: float
    """Relative difference of the gradients' sums, packed and alone (L2 norms)."""
    changed: int
    """Samples of which a token was changed."""
    leaked: float
    """Largest change of another sample's loss then."""
    felt: float
    """Smallest change of its own sample's loss then: what is measured can be seen."""
    unbounded: float
    """Largest relative difference of a loss without boundaries: what a leak would look like."""

    @property
    def holds(self) -> bool:
        """Whether packed equals alone, and nothing reaches another sample."""
        return (
            self.loss_difference <= 1e-6
            and self.gradient_difference <= 1e-5
            and self.leaked == 0
            and self.felt > 0
        )


@dataclass(frozen=True)
class LintReport:
    """Everything that was found."""

    name: str
    """Of the recipe."""
    unit: str
    """What is counted: "conversations" or "pairs"."""
    data: str
    """Their ref."""
    base: str
    """The ref of the model whose tokenizer reads them."""
    layout: str
    sequence_length: int
    train_on: str
    splits: Mapping[str, int]
    """Conversations or pairs by split."""
    findings: tuple[Finding, ...]
    lengths: Lengths | None
    """None: no sample is left."""
    packing: Packing | None
    sources: tuple[SourceFigures, ...]
    copies_of_other_sources: int
    """Those that another source has said before."""
    overlaps: Overlaps
    proof: PackingProof | None
    """None: there is no sample to pack."""
    seconds: float
    pairs: PairFigures | None = None
    """None: of conversations."""

    @property
    def rows(self) -> int:
        """Conversations or pairs."""
        return sum(self.splits.values())

    @property
    def errors(self) -> int:
        """Those at which training stops; 1 more if packing is wrong or none is left."""
        broken = self.proof is not None and not self.proof.holds
        return sum(one.count for one in self.findings if one.is_error) + broken + self.nothing_left

    @property
    def nothing_left(self) -> bool:
        """Whether the recipe leaves everything out that it would train on."""
        return self.packing is None and not any(one.is_error for one in self.findings)

    @property
    def languages(self) -> dict[str, int]:
        """Conversations or answers by language, of all sources, most first."""
        total: dict[str, int] = {}
        for source in self.sources:
            for language, count in source.languages.items():
                total[language] = total.get(language, 0) + count
        return dict(sorted(total.items(), key=lambda one: (-one[1], one[0])))

    def to_json(self) -> dict[str, Any]:
        """As JSON data, with what follows from it."""
        found = asdict(self)
        found["errors"] = self.errors
        if self.lengths is not None:
            found["lengths"]["trained_share"] = self.lengths.trained_share
        if self.proof is not None:
            found["proof"]["holds"] = self.proof.holds
        return found
