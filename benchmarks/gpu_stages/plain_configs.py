"""Settings without pydantic: what bc2's core is given on a machine where little is installed.

The fields and their defaults are those of bc2's own classes, whose formulas these inherit;
tests/benchmarks/test_plain_configs.py holds the ones against the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np

from bc2.data.loader import Batch, pack
from bc2.generate.engine_formulas import EngineFormulas
from bc2.model.model_formulas import HeadKind, ModelFormulas
from bc2.parallel.layout import ORDER, Axis, LayoutFormulas
from bc2.train.optimizer_state import AdamWState
from bc2.train.pretrain.next_token import NextToken


class Plain:
    """The two methods of pydantic's models that bc2's core calls."""

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        return replace(self, **(update or {}))  # type: ignore[type-var]

    def model_dump(self, **options: Any) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Model(Plain, ModelFormulas):
    """See `bc2.model.model_config.ModelConfig`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    position: str = "rope"
    rope_base: float = 10000.0
    context_length: int = 4096
    norm_eps: float = 1e-6
    norm_head: bool = True
    initializer_range: float = 0.02
    head: HeadKind = "language"
    num_classes: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: None = None
    tied: bool = False
    sliding_window: int | None = None


@dataclass(frozen=True)
class Layout(Plain, LayoutFormulas):
    """See `bc2.parallel.parallel_config.ParallelConfig`."""

    tensor: int = 1
    sequence: int = 1
    zero: int = 0
    zero_group: int | None = None
    offload_optimizer: bool = False
    overlap: bool = True
    order: tuple[Axis, ...] = ORDER


@dataclass(frozen=True)
class AdamW(Plain, AdamWState):
    """See `bc2.train.optimizer_config.AdamWConfig`."""

    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 0.5


@dataclass(frozen=True)
class Training(Plain):
    """What the core reads of `bc2.train.pretrain.pretrain_config.PretrainConfig`, resolved."""

    device: str
    precision: str
    sequence_length: int = 4096
    batch_sequences: int = 1
    segment_layers: int = 0
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    z_loss: float = 2e-4
    optimizer: AdamW = field(default_factory=AdamW)


@dataclass(frozen=True)
class Cache(Plain, EngineFormulas):
    """See `bc2.generate.engine_config.EngineConfig`."""

    cache_bytes: int | None = None
    block_tokens: int = 16
    idle_share: float = 0.25
    max_running: int = 256
    step_tokens: int = 2048
    window: int = 4096


@dataclass(frozen=True)
class Sampling(Plain):
    """See `bc2.generate.sampling_config.SamplingConfig`."""

    max_new_tokens: int = 256
    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class Role:
    """See `bc2.train.algorithm.ModelRole`."""

    model: Model
    name: str = "model"
    trained: bool = True
    optimizer: None = None
    trainable: None = None
    adapters: None = None


class NextTokens:
    """What a trial asks of `bc2.train.pretrain.pretraining.PRETRAINING`."""

    divisor = "tokens"

    def objective(self, role: str, config: Training, models: Any) -> NextToken:
        return NextToken(config.z_loss)

    def example(self, settings: TrialSettings, sequences: int, rng: np.random.Generator) -> Batch:
        shape = (sequences, settings.training.sequence_length + 1)
        rows = rng.integers(0, settings.models[0].model.vocab_size, shape)
        return pack(rows, np.zeros(sequences, dtype=np.int64), eos_id=-1)


@dataclass(frozen=True)
class TrialSettings:
    """What a trial reads of `bc2.train.training_settings.TrainingSettings`."""

    models: tuple[Role, ...]
    training: Training
    algorithm: NextTokens = field(default_factory=NextTokens)

    def with_training(self, **changed: Any) -> Self:
        return replace(self, training=self.training.model_copy(update=changed))


#: The `ladder/1.6b` shape.
LADDER_1_6B = Model(
    vocab_size=125_696, hidden_size=2240, intermediate_size=6720, num_layers=24, num_heads=14
)

#: Baichuan 2 7B, with 12 of its 32 layers.
WIDE_7B = Model(
    vocab_size=125_696, hidden_size=4096, intermediate_size=11_008, num_layers=12, num_heads=32
)
