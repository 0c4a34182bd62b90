"""What a worker is asked to measure: a model, a way of running it, and the work."""

from __future__ import annotations

from typing import Literal

from bc2.generate.engine_config import EngineConfig
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.recipe import Settings
from bc2.train.precision import Precision

#: The parts of the benchmark, in the order in which they are measured.
PARTS = ("decode", "prefix", "sampling", "settle", "n")

Kind = Literal["bc2", "hf-static", "hf-sorted", "hf-continuous"]

#: Who can do the work of `decode`: bc2's engine, and three ways of transformers' Llama.
#: `hf-sorted` gets the prompts sorted by the length of their answers, which nobody knows
#: beforehand: it is the least that static batches can waste.
CONTENDERS: tuple[Kind, ...] = ("bc2", "hf-static", "hf-sorted", "hf-continuous")

#: Sizes that are tried for each peer: sequences of a static batch, or those running at once.
SIZES = (8, 16, 32, 64, 128)


class Job(Settings):
    """One contender, ready to run."""

    kind: Kind
    model: ModelConfig
    """The shape, the same for all."""
    checkpoint: str | None = None
    """Directory of the weights; None: drawn with `seed`."""
    adapter: str | None = None
    """Directory of the adapters beside them."""
    lora: LoraConfig | None = None
    """What those are."""
    seed: int
    """Of the weights."""
    precision: Precision
    device: str
    engine: EngineConfig
    """Of bc2's engine."""
    work: str
    """Path of the file with the `Work`."""
    size: int = 0
    """Of a peer: sequences together."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.kind}-{self.precision}"
