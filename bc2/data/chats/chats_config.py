"""What chats are made of: the section [chats]."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from bc2.data.source_config import OriginConfig, check_distinct_names
from bc2.recipe import Section

if TYPE_CHECKING:
    from bc2.data.documents import SourceFile


class ChatSourceConfig(OriginConfig):
    """One named origin of conversations.

    Read: .jsonl, .ndjson and .json (a conversation a line, or one list of them), each also as
    .gz or .zst, and .parquet.
    """

    environment: Literal["instructions"] | None = None
    """Conversations that are made of what Python and the `quickstart` extra bring."""

    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"] = "auto"
    """Which keys of a row are read; "auto": the format that the first row of each file has."""

    times: float = Field(1.0, gt=0, le=1e6)
    """How often an epoch reads each conversation of it; of a fraction, a share of them."""

    max_rows: int | None = Field(None, gt=0)
    """Read so many rows of it at most, from its beginning."""

    def environment_files(self) -> list[SourceFile]:
        from bc2.data.chats.instructions import instruction_files

        return instruction_files()


class ChatsConfig(Section):
    """[chats]: read conversations of any usual form, split off held-out ones."""

    section: ClassVar[str] = "chats"

    sources: tuple[ChatSourceConfig, ...] = Field(min_length=1)
    """Where the conversations come from. Equal ones are all kept: `bc2 data lint` counts them."""

    system: str | None = Field(None, min_length=1)
    """Put before conversations that have no system message."""

    heldout_fraction: float = Field(0.01, ge=0, lt=1)
    """Share of conversations held out of training, chosen by the hash of what is said."""

    malformed: Literal["stop", "skip"] = "stop"
    """A row that is no conversation stops the run, or is counted by reason and skipped."""

    max_malformed: float = Field(0.01, ge=0, le=1)
    """Share of a source's rows that may be skipped as malformed; more stop the run. Rows that are
    marked as not wanted (`label: false`) are not among them."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds what is made: the conversations of `environment`."""

    _distinct_names = field_validator("sources")(check_distinct_names)
