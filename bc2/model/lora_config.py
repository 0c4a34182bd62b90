"""``lora``: the table of a section that trains adapters of low rank. Imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from bc2.recipe import FP32_LARGEST, FP32_SMALLEST, Settings

#: The matrices of a layer that an adapter may stand beside.
Target = Literal["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)


class LoraConfig(Settings):
    """LoRA (arXiv 2106.09685): the base stays as it is, and matrices of low rank are trained.

    There is no dropout before an adapter: nothing that is computed again in a backward pass draws
    random numbers. The 0.1 of Baichuan 2's recipe is left out.
    """

    rank: int = Field(8, ge=1, le=2**16)
    """Channels r between the two matrices of an adapter: A [r, I] and B [O, r]."""
    alpha: float = Field(16.0, gt=0, ge=FP32_SMALLEST, le=FP32_LARGEST)
    """What an adapter says is scaled by alpha / rank."""
    targets: tuple[Target, ...] = TARGETS
    """The matrices of every layer that get one. W_pack's queries, keys and values share its r
    channels."""

    @field_validator("targets")
    @classmethod
    def _each_once(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        if not targets or len({*targets}) < len(targets):
            raise ValueError(f"name some of {', '.join(TARGETS)}, each once")
        return tuple(target for target in TARGETS if target in targets)
