"""What decides the scores of a checkpoint in a suite; recorded with them in place of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bc2.recipe import KEYED_UNLESS_DEFAULT, Settings


class EvalSettings(Settings):
    """One suite, as it was evaluated."""

    suite: str
    """The name that ``--bench`` takes."""

    shots: int | None = Field(ge=0)
    """Examples in a prompt; None: as many as each task of lm-eval has by itself."""

    limit: int | None = Field(default=None, gt=0)
    """The first so many samples of each task; None: all."""

    seed: int = Field(default=1234, ge=0)
    """Of the choice of examples, where they are drawn, and of sampling. lm-eval's default."""

    samples: int = Field(default=1, gt=0)
    """Answers to each prompt that is continued."""

    temperature: float = Field(default=0.0, ge=0)
    """Of the continuations; 0 is greedy."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the weights."""

    data: str
    """Digest of the rows, or where lm-eval takes them from."""

    harness: str
    """Which prompts and metrics: lm-eval's version, and digests of its and our tasks' files."""

    prompts_version: int
    """Of the way in which prompts are built."""

    apply_chat_template: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Whether prompts are chats in the checkpoint's layout."""

    fewshot_as_multiturn: bool = Field(False, json_schema_extra=KEYED_UNLESS_DEFAULT)
    """Whether the examples are turns of these chats; else they are in the user's one turn."""
