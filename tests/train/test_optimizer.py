"""The optimizer module: what AdamW keeps and decays, and how another rule joins the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from bc2.data.loader import pack
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.train.engines import local
from bc2.train.engines.local import LocalEngine
from bc2.train.optimizer import STEP, AdamW, Optimizer, make_optimizer
from bc2.train.optimizer_config import AdamWConfig, checkpoint_bytes
from bc2.train.pretrain.next_token import NextToken

SHAPE = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
    context_length=16,
)  # fmt: skip


class Momentum(Optimizer):
    """Another rule: one buffer for each matrix, and none for vectors."""

    def __init__(
        self, parameters: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], _: object
    ):
        matrices = [p for name, p in parameters.items() if len(shapes[name]) > 1]
        vectors = [p for name, p in parameters.items() if len(shapes[name]) == 1]
        groups = [{"params": matrices, "momentum": 0.9}, {"params": vectors, "momentum": 0.0}]
        names = {name: ("momentum_buffer",) if len(shapes[name]) > 1 else () for name in parameters}
        super().__init__(torch.optim.SGD(groups, lr=0.1), names, [("momentum_buffer",), ()])

    def prepare(self, learning_rate: float, *, norm: float, clip_norm: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = learning_rate * min(1.0, clip_norm / norm)


def engine(seed: int = 0) -> LocalEngine:
    made = Transformer(SHAPE)
    made.init_weights(torch.Generator().manual_seed(seed))
    return LocalEngine(made, AdamWConfig(), precision="bf16")


def step(trained: LocalEngine) -> float:
    tokens = np.random.default_rng(0).integers(3, 64, (2, 17))
    one = pack(tokens, np.zeros(2, np.int64), eos_id=-1)
    loss = trained.accumulate([one], NextToken(0.0), divisor=one.num_labels)["loss"]
    trained.update(0.05, norm=trained.gradient_norm(), clip_norm=1.0)
    return loss


def test_another_rule_trains_and_resumes_in_the_engine_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "make_optimizer", Momentum)
    straight = engine()
    losses = [step(straight) for _ in range(6)]
    assert losses[-1] < losses[0]
    stopped = engine()
    for _ in range(3):
        step(stopped)
    state = stopped.snapshot()
    matrices = {n for n, p in stopped.parts.items() if len(p.shape) > 1}
    assert set(state.optimizer.shapes) == {f"momentum_buffer.{name}" for name in matrices}
    resumed = engine(seed=9)
    resumed.restore(state.weights, state.optimizer)
    assert [step(resumed) for _ in range(3)] == losses[3:]


def test_adamw_decays_matrices_by_their_whole_shape() -> None:
    """A parameter that ZeRO 3 has partitioned is flat itself."""
    config = AdamWConfig(weight_decay=0.3)
    flat = {"a": torch.zeros(6, requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    made = make_optimizer(flat, {"a": (2, 3), "b": (2,)}, config)
    decay = {id(p): g["weight_decay"] for g in made.inner.param_groups for p in g["params"]}
    assert decay == {id(flat["a"]): 0.3, id(flat["b"]): 0.0}


def test_the_bytes_of_its_state_are_those_that_it_has() -> None:
    weights = dict(Transformer(SHAPE).named_parameters())
    made = AdamW(weights, {name: p.shape for name, p in weights.items()}, AdamWConfig())
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    made.prepare(1e-3, norm=1.0, clip_norm=1.0)
    made.inner.step()
    held = sum(
        value.nbytes for state in made.state.values() for key, value in state.items() if key != STEP
    )
    assert held == AdamWConfig().state_bytes(SHAPE) * SHAPE.num_params()
    assert checkpoint_bytes(SHAPE, AdamWConfig()) == held + 4 * SHAPE.num_params()
    assert all(
        set(state) == {STEP, *made.state_names["lm_head.weight"]} for state in made.state.values()
    )
