"""Training a head of values, against AdamW over the same model in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from bc2.data.loader import Batch, pack
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.train.engines.local import LocalEngine
from bc2.train.objective import Loss
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.precision import Precision
from bc2.train.pretrain.next_token import NextToken
from bc2.train.speed.clock import Clock

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
    context_length=16, head="scalar",
)  # fmt: skip
ADAMW = AdamWConfig(learning_rate=1e-2, eps=1e-6)


def model() -> Transformer:
    built = Transformer(CONFIG)
    built.init_weights(torch.Generator().manual_seed(0))
    return built


def batch(seed: int) -> Batch:
    rows = np.random.default_rng(seed).integers(3, 64, size=(4, 17))
    return pack(rows, np.zeros(4, np.int64), 2)


def squares(model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
    """How far the value of each token is from its place in the vocabulary, squared."""
    tokens = torch.from_numpy(batch.tokens).flatten()
    values = model.values(model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen))
    total = (values - tokens / 64).square().sum()
    return Loss(total, {"values": values.detach().sum()})


def naive_steps(count: int) -> tuple[list[list[float]], dict[str, Tensor]]:
    """Loss and norm of each step, and the weights after them, all in float64."""
    naive = copy.deepcopy(model()).double()
    decayed = [p for p in naive.parameters() if p.dim() > 1]
    plain = [p for p in naive.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    rule = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps)
    found = []
    for step in range(count):
        data = batch(step)
        loss = squares(naive, data).total / data.num_labels
        naive.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(naive.parameters(), 0.5)
        rule.step()
        found.append([loss.item(), norm.item()])
    return found, {name: p.detach() for name, p in naive.named_parameters()}


def engine_steps(precision: Precision, count: int) -> tuple[list[list[float]], LocalEngine]:
    engine = LocalEngine(model(), ADAMW, precision=precision)
    found = []
    for step in range(count):
        data = batch(step)
        sums = engine.accumulate([data], squares, divisor=data.num_labels)
        norm = engine.gradient_norm()
        engine.update(1e-2, norm=norm, clip_norm=0.5)
        found.append([sums["loss"] / data.num_labels, norm])
    return found, engine


def test_steps_are_those_of_float64() -> None:
    expected, weights = naive_steps(6)
    found, engine = engine_steps("fp32", 6)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert expected[-1][0] < 0.7 * expected[0][0], "nothing was learnt"
    for name, master in zip(engine.parts, engine.master, strict=True):
        difference = master.detach().double() - weights[name]
        assert difference.norm() <= 1e-4 * weights[name].norm(), name


def test_in_bf16_the_head_stays_fp32_and_is_its_own_master() -> None:
    expected, _ = naive_steps(6)
    found, engine = engine_steps("bf16", 6)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=3e-2)
    masters = dict(zip(engine.parts, engine.master, strict=True))
    assert engine.model.head.weight is masters["score.weight"]
    assert engine.model.head.weight.dtype == torch.float32
    assert engine.model.model.norm.weight.dtype == torch.bfloat16
    state = engine.snapshot()
    assert torch.equal(state.weights.whole("score.weight"), masters["score.weight"])
    assert state.optimizer.whole("exp_avg.score.weight").any()


def test_compiling_layers_needs_no_language_head() -> None:
    engine = LocalEngine(model(), ADAMW, compile=True)
    assert not hasattr(engine.model.head, "compiled")


def test_next_tokens_need_a_language_head() -> None:
    with pytest.raises(ValueError, match="a scalar head has no next token"):
        NextToken(0.0)(model(), batch(0))
