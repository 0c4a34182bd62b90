"""`[model.rope_scaling]`: rotary wavelengths stretched for longer texts. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bc2.recipe import Settings


class RopeScaling(Settings):
    """How the rotary wavelengths of a model that was trained on shorter texts are changed.

    A channel pair whose wavelength is short tells neighbours apart, and stays as it is; one whose
    wavelength is longer than the texts of that training is stretched by `factor`.
    """

    kind: Literal["linear", "llama3", "yarn"]
    """linear stretches all (arXiv 2306.15595); llama3 and yarn (arXiv 2309.00071) the long ones,
    each with its own way between."""

    factor: float = Field(ge=1, le=1e6)
    """How much longer the texts are."""

    original_context: int | None = Field(None, gt=0, lt=2**31)
    """Tokens of the texts before; llama3 and yarn need it."""

    low_freq_factor: float = Field(1.0, gt=0, le=1e6)
    """llama3: wavelengths above original_context / low_freq_factor are stretched."""

    high_freq_factor: float = Field(4.0, gt=0, le=1e6)
    """llama3: wavelengths below original_context / high_freq_factor stay."""

    beta_fast: float = Field(32.0, gt=0, le=1e6)
    """yarn: channels that turn more often than this in original_context stay."""

    beta_slow: float = Field(1.0, gt=0, le=1e6)
    """yarn: channels that turn less often than this in original_context are stretched."""

    attention_factor: float | None = Field(None, gt=0, le=1e6)
    """yarn: what cos and sin are multiplied by. None: 0.1 ln(factor) + 1."""

    @model_validator(mode="after")
    def _settings_are_those_of_the_kind(self) -> Self:
        if self.kind != "linear" and self.original_context is None:
            raise ValueError(f'kind = "{self.kind}" needs original_context')
        own = {
            "llama3": {"original_context", "low_freq_factor", "high_freq_factor"},
            "yarn": {"original_context", "beta_fast", "beta_slow", "attention_factor"},
        }.get(self.kind, set())
        for name in sorted(self.model_fields_set - own - {"kind", "factor"}):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} is not for kind = "{self.kind}"')
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("low_freq_factor must be less than high_freq_factor")
        if self.beta_slow >= self.beta_fast:
            raise ValueError("beta_slow must be less than beta_fast")
        return self
