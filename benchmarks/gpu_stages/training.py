"""Engines, batches and steps that several stages share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2.data.loader import Batch, pack
from bc2.parallel.build import build_model
from bc2.parallel.mesh import Mesh
from bc2.train.engines.base import Engine
from bc2.train.engines.local import LocalEngine
from bc2.train.engines.make import make_engine
from bc2.train.pretrain.next_token import NextToken
from gpu_stages.plain_configs import AdamW, Model, Training

Rows = npt.NDArray[np.int64]

Z_WEIGHT = 2e-4
EOS = 2

#: A model that a CPU trains in moments; on a GPU the kernels of the large ones run for it too.
SMALL = Model(
    vocab_size=640, hidden_size=64, intermediate_size=176, num_layers=2, num_heads=2,
    context_length=64,
)  # fmt: skip
MIDDLE = Model(
    vocab_size=32_003, hidden_size=768, intermediate_size=2048, num_layers=4, num_heads=6,
    context_length=1024,
)  # fmt: skip


def packed(rows: Rows) -> Batch:
    """A batch of rows [R, S + 1]."""
    return pack(rows, np.zeros(len(rows), dtype=np.int64), eos_id=EOS)


def random_rows(model: Model, rows: int, length: int, seed: int, *, documents: bool = True) -> Rows:
    """Random tokens [R, S + 1].

    Args:
        documents: with several documents in a row, of lengths that differ from seed to seed; else
            each row is one.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(EOS + 1, model.vocab_size, (rows, length + 1))
    return _cut(tokens, rng) if documents else tokens


def counting(model: Model, rows: int, length: int, seed: int) -> Rows:
    """Rows [R, S + 1] of counting tokens, which a model can learn, so that losses move."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, model.vocab_size, (rows, 1))
    span = model.vocab_size - EOS - 1
    return _cut(EOS + 1 + (begin + np.arange(length + 1)) % span, rng)


def _cut(tokens: Rows, rng: np.random.Generator) -> Rows:
    """Rows in which documents end, about every quarter."""
    tokens[rng.random(tokens.shape) < 4 / tokens.shape[1]] = EOS
    return tokens


def engine_of(
    model: Model,
    device: torch.device,
    precision: str,
    *,
    learning_rate: float = 1e-3,
    compile: bool = False,
    mesh: Mesh | None = None,
) -> Engine:
    """bc2's engine for one rank, with the weights of seed 0."""
    optimizer = AdamW(learning_rate=learning_rate)
    training = Training(str(device), precision, optimizer=optimizer, compile=compile)
    return make_engine(model, training, None, mesh or Mesh())


def quick_engine(
    model: Model, device: torch.device, precision: str, *, compile: bool = False
) -> LocalEngine:
    """An engine with weights that the device draws: a CPU takes long for a billion of them."""
    built = build_model(model, Mesh()).to_empty(device=device)
    with torch.no_grad():
        for weight in built.parameters():
            weight.normal_(0.0, 0.02) if weight.dim() > 1 else weight.fill_(1.0)
    return LocalEngine(built, AdamW(), precision=precision, compile=compile)


@dataclass(frozen=True)
class Step:
    """What a step came to."""

    loss: float
    norm: float


def step(
    engine: Engine, batches: Sequence[Batch], *, clip: float = 0.5, learning_rate: float = 1e-3,
    tokens: float | None = None,
) -> Step:  # fmt: skip
    """One optimizer step.

    Args:
        tokens: supervised tokens on all ranks; those of `batches` if None.
    """
    count = sum(batch.num_labels for batch in batches) if tokens is None else tokens
    found = engine.accumulate(batches, NextToken(Z_WEIGHT), divisor=count)
    norm = engine.gradient_norm()
    engine.update(learning_rate, norm=norm, clip_norm=clip)
    return Step(float(found["loss"]) / count, float(norm))


def weights_of(engine: Engine) -> dict[str, Tensor]:
    """fp32 weights, on the host."""
    held = engine.snapshot().weights
    return {name: held.whole(name).clone() for name in held.shapes}


def moved(found: dict[str, Tensor], other: dict[str, Tensor], first: dict[str, Tensor]) -> float:
    """How far two trainings are apart, as a part of the way that one went from `first`."""
    gap = sum(float((found[n].double() - other[n].double()).square().sum()) for n in first)
    way = sum(float((other[n].double() - first[n].double()).square().sum()) for n in first)
    return float((gap / way) ** 0.5) if way else float("nan")
