"""What pairs are made of: the section [pairs]. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from bc2.data.source_config import OriginConfig, check_distinct_names
from bc2.recipe import Section

if TYPE_CHECKING:
    from bc2.data.documents import SourceFile

PairFormat = Literal["auto", "pairs", "sharegpt", "dialogues", "scored", "ranked"]


class PairSourceConfig(OriginConfig):
    """One named origin of comparisons.

    Read: .jsonl, .ndjson and .json (a comparison a line, or one list of them), each also as .gz or
    .zst, and .parquet.
    """

    environment: Literal["endings"] | None = None
    """Pairs that are made of what Python and the `quickstart` extra bring: of two answers of the
    same words, the one with a given ending wins."""

    format: PairFormat = "auto"
    """Which keys of a row are read; "auto": the format that the first row of each file has."""

    times: float = Field(1.0, gt=0, le=1e6)
    """How often an epoch reads each pair of it; of a fraction, a share of them."""

    max_rows: int | None = Field(None, gt=0)
    """Read so many rows of it at most, from its beginning."""

    score_range: tuple[float, float] | None = None
    """The lowest and highest score that its rows may have: another one is an error. None: what
    they have, and an error where they are visibly on two scales."""

    normalise: Literal["range", "standard", "none"] = "standard"
    """How scores become the targets of the absolute loss: from `score_range` (or the lowest and
    highest that there are) to -1 .. 1; to a mean of 0 and a standard deviation of 1; or as they
    are. By the training answers of the source."""

    min_gap: float = Field(0.0, ge=0)
    """Of answers with scores, two make a pair where their scores differ by more than this."""

    max_pairs: int | None = Field(None, gt=0)
    """At most so many pairs of one row's answers, drawn evenly from all; None: all."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError("score_range is [lowest, highest], and the first is not below")
        return self

    def environment_files(self) -> list[SourceFile]:
        from bc2.data.chats.instructions import instruction_files

        return instruction_files()


class PairsConfig(Section):
    """[pairs]: read comparisons of any usual form, split off held-out prompts."""

    section: ClassVar[str] = "pairs"

    sources: tuple[PairSourceConfig, ...] = Field(min_length=1)
    """Where the comparisons come from."""

    system: str | None = Field(None, min_length=1)
    """Put before prompts that have no system message."""

    heldout_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of prompts held out of training with all their answers, by the hash of the prompt."""

    malformed: Literal["stop", "skip"] = "stop"
    """A row that is no comparison stops the run, or is counted by reason and skipped."""

    max_malformed: float = Field(0.01, ge=0, le=1)
    """Share of a source's rows that may be skipped as malformed; more stop the run."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds what is drawn: `max_pairs`, and the pairs of `environment`."""

    _distinct_names = field_validator("sources")(check_distinct_names)
