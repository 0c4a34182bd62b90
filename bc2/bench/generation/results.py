"""Results of `bc2 bench generate`: what they hold, and how they are kept and found again."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from pydantic import Field

from bc2.bench.results import (
    KeptResult,
    Ratio,
    Spread,
    checked,
    kept_path,
    read_kept,
    read_values,
)
from bc2.recipe import Settings

#: Raised when a field changes its name or its meaning.
VERSION = 1


class Pass(Settings):
    """One pass of a contender over all prompts."""

    seconds: float
    first_median_s: float
    """From the beginning to the first token of an answer: the median over the answers."""
    first_p95_s: float
    """The same for the answer at 95%."""


class HostMemory(Settings):
    """Bytes of memory."""

    baseline: int
    """Resident after the imports."""
    peak: int
    """Most resident at once, from building the model to the last round."""
    reserved: int | None
    """Most that torch's allocator held on a GPU."""

    @property
    def taken(self) -> int:
        """On the GPU if there is one, else on the host above the baseline."""
        return self.peak - self.baseline if self.reserved is None else self.reserved


class DecodeResult(Settings):
    """What was measured of a contender of `decode`, or why nothing was."""

    name: str
    kind: str
    precision: str
    failed: str | None = None
    size: int = 0
    """Of a peer: sequences together."""
    tried: dict[int, float] = Field(default_factory=dict)
    """Of a peer: new tokens/s in each size, on a part of the work."""
    threads: int | None = None
    rounds: list[Pass] = Field(default_factory=list)
    memory: HostMemory | None = None
    counters: dict[str, float] = Field(default_factory=dict)
    """Of bc2's engine, over all rounds."""
    same_answers: float | None = None
    """Of a peer: the share of its answers that are bc2's, token for token."""

    @property
    def seconds(self) -> Spread:
        return Spread.of([each.seconds for each in self.rounds])

    def tokens_per_s(self, tokens: int) -> Spread:
        """Speed by round, for `tokens` new tokens in a round."""
        return Spread.of([tokens / each.seconds for each in self.rounds])


class PrefixResult(Settings):
    """Scoring with shared beginnings and without."""

    precision: str
    requests: int
    shared_s: list[float]
    """Seconds by round."""
    apart_s: list[float]
    shared_tokens: int
    """Computed in a round, with shared beginnings."""
    apart_tokens: int
    """Computed in a round, without."""
    difference: float
    """Of the sums of all log-probabilities, in nats a request."""

    @property
    def times_as_fast(self) -> Spread:
        pairs = zip(self.apart_s, self.shared_s, strict=True)
        return Spread.of([apart / shared for apart, shared in pairs])


class ShareResult(Settings):
    """A part of a run's time."""

    precision: str
    what: str
    part_s: list[float]
    """Seconds of the part, by round."""
    seconds: list[float]
    """Seconds of all, by round."""
    steps: int
    """Forward passes of a round."""
    events: int = 0
    """Near ties that were settled in a round."""

    @property
    def share(self) -> Spread:
        pairs = zip(self.part_s, self.seconds, strict=True)
        return Spread.of([part / whole for part, whole in pairs])


class FamilyResult(Settings):
    """Several continuations of one prompt."""

    precision: str
    n: int
    prompt: int
    """Tokens of the prompt."""
    prompt_tokens: int
    """Prompt tokens that were computed for all of them."""
    one_s: list[float]
    """Seconds of one continuation, by round."""
    all_s: list[float]
    """Seconds of `n`, by round."""

    @property
    def one_prefill(self) -> bool:
        return self.prompt_tokens == self.prompt

    @property
    def times_as_long(self) -> Spread:
        pairs = zip(self.all_s, self.one_s, strict=True)
        return Spread.of([several / one for several, one in pairs])


class GenerationResult(KeptResult):
    """One run of `bc2 bench generate`."""

    version: int = VERSION
    work: dict[str, int]
    """Sizes of the work."""
    decode: list[DecodeResult] = Field(default_factory=list)
    ratios: list[Ratio] = Field(default_factory=list)
    """Of `decode`: how many times as fast bc2 is."""
    prefix: list[PrefixResult] = Field(default_factory=list)
    sampling: list[ShareResult] = Field(default_factory=list)
    settle: list[ShareResult] = Field(default_factory=list)
    n: list[FamilyResult] = Field(default_factory=list)
    failed: dict[str, str] = Field(default_factory=dict)
    """Parts that could not be measured, and why."""

    def as_json(self) -> dict[str, Any]:
        """Everything kept, and what is worked out from it."""
        kept = self.model_dump(mode="json")
        tokens = self.work["answer_tokens"]
        for fields, found in zip(kept["decode"], self.decode, strict=True):
            if not found.failed:
                fields["tokens_per_s"] = found.tokens_per_s(tokens).model_dump()
        for fields, ratio in zip(kept["ratios"], self.ratios, strict=True):
            fields.update(ratio.spread.model_dump())
        for fields, prefix in zip(kept["prefix"], self.prefix, strict=True):
            fields["times_as_fast"] = prefix.times_as_fast.model_dump()
        for part, shares in (("sampling", self.sampling), ("settle", self.settle)):
            for fields, share in zip(kept[part], shares, strict=True):
                fields["share"] = share.share.model_dump()
        for fields, family in zip(kept["n"], self.n, strict=True):
            fields["times_as_long"] = family.times_as_long.model_dump()
            fields["one_prefill"] = family.one_prefill
        return kept


def pass_of(answer: dict[str, Any]) -> Pass:
    """What is kept of a worker's answer."""
    first = sorted(answer["first_s"])
    return Pass(
        seconds=answer["seconds"],
        first_median_s=statistics.median(first),
        first_p95_s=first[min(len(first) - 1, int(0.95 * len(first)))],
    )


def read_generation(path: Path) -> GenerationResult:
    """Read a kept result.

    Raises:
        DataError: no such file, or not a result of this version of bc2.
    """
    return checked(GenerationResult, read_values(path), VERSION, path)


def read_kept_generations(folder: Path) -> list[GenerationResult]:
    """Every kept result, oldest first; one that cannot be read is left out with a warning."""
    return sorted(read_kept(folder, read_generation), key=lambda result: result.time)


def find_generation(ref: str, folder: Path) -> GenerationResult:
    """A result by path, id or the beginning of an id.

    Raises:
        RefError: none answers to it, or several do.
    """
    return read_generation(kept_path(ref, folder, "bc2 bench generate --list"))
