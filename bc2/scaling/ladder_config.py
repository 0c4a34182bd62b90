"""The section [ladder]: the small runs that a scaling law is fitted to. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from bc2.recipe import UNKEYED, Section, Settings
from bc2.train.duration import Duration


class ShapeConfig(Settings):
    """The shape of a member, over the recipe's [model]."""

    hidden_size: int = Field(gt=0, json_schema_extra=UNKEYED)
    """Width of the residual stream."""
    intermediate_size: int = Field(gt=0, json_schema_extra=UNKEYED)
    """Width of the feed-forward layer."""
    num_layers: int = Field(gt=0, json_schema_extra=UNKEYED)
    """Decoder layers."""
    num_heads: int = Field(gt=0, json_schema_extra=UNKEYED)
    """Attention heads."""


class MemberConfig(Settings):
    """One run of a ladder: a size, a length, and what its size does not decide."""

    recipe: str | None = Field(None, min_length=1, json_schema_extra=UNKEYED)
    """A recipe whose [model] and length are taken, such as "ladder/11m"; or `model`."""
    model: ShapeConfig | None = Field(None, json_schema_extra=UNKEYED)
    """A shape over this recipe's own [model]; or `recipe`."""
    length: str | None = Field(None, json_schema_extra=UNKEYED)
    """How long to train, in steps or tokens: "2M tokens". With `recipe`, its own if none."""
    learning_rate: float | None = Field(None, gt=0, json_schema_extra=UNKEYED)
    """The highest learning rate; by the rule of the ladder if none."""
    batch_tokens: int | None = Field(None, gt=0, json_schema_extra=UNKEYED)
    """Tokens that one optimizer step sees; by the rule of the ladder if none."""

    @field_validator("length")
    @classmethod
    def _known_beforehand(cls, text: str | None) -> str | None:
        if text is not None and Duration.parse(text).unit == "epochs":
            raise ValueError("a member's length is in steps or tokens, to be known beforehand")
        return text

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.recipe is None) == (self.model is None):
            got = "both" if self.recipe else "neither"
            raise ValueError(f"a member has a recipe or a model, exactly one of them; got {got}")
        if self.recipe is None and self.length is None:
            raise ValueError('a member without a recipe needs a length, such as "2M tokens"')
        return self


class LadderConfig(Section):
    """[ladder]: runs of this recipe at several sizes, and the rule for what changes with size.

    Nothing here enters a key: each member is a run of `bc2 pretrain` with some settings
    replaced, and those are keyed.
    """

    section: ClassVar[str] = "ladder"

    reference_params: int = Field(gt=0, json_schema_extra=UNKEYED)
    """Parameters without embedding and head, N, at which the recipe's own learning rate and
    batch hold."""
    learning_rate_exponent: float = Field(-1 / 3, ge=-10, le=10, json_schema_extra=UNKEYED)
    """The learning rate of a member is the recipe's times (N / reference_params) to this."""
    batch_exponent: float = Field(2 / 3, ge=-10, le=10, json_schema_extra=UNKEYED)
    """The batch of a member is the recipe's times (N / reference_params) to this."""
    warmup_share: float = Field(0.1, ge=0, lt=1, json_schema_extra=UNKEYED)
    """Share of a member's steps that warm up: a fixed number of them would not fit small runs."""
    members: tuple[MemberConfig, ...] = Field(min_length=1, json_schema_extra=UNKEYED)
    """The runs that a law is fitted to."""
    extrapolation: MemberConfig | None = Field(None, json_schema_extra=UNKEYED)
    """A larger run that tests the law: `bc2 ladder --extrapolate` trains it too."""
