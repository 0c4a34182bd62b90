"""The objective of pretraining against torch's cross-entropy in float64, whatever the labels."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bc2.data.loader import IGNORED, Batch, pack
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.train.engines.local import LocalEngine
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.next_token import NextToken

V, EOS, Z_WEIGHT = 64, 2, 2e-4
CONFIG = ModelConfig(
    vocab_size=V, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
    context_length=16,
)  # fmt: skip


@pytest.fixture
def batch() -> Batch:
    """Labels that have nothing to do with the tokens, also where a document or a row ends."""
    rng = np.random.default_rng(0)
    rows = rng.integers(3, V, (4, 17))
    rows[rng.random(rows.shape) < 0.2] = EOS
    packed = pack(rows, np.zeros(4, np.int64), EOS)
    labels = rng.integers(0, V, packed.labels.shape)
    labels[rng.random(labels.shape) < 0.3] = IGNORED
    labels[0, -1], labels[1, -1], labels[2, 0] = 0, V - 1, EOS
    assert np.any((packed.tokens == EOS) & (labels != IGNORED))
    count = int(np.count_nonzero(labels != IGNORED))
    return replace(packed, labels=labels, num_labels=count)


def reference(model: Transformer, batch: Batch) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Sums, and gradients of their mean over the supervised tokens."""
    naive = copy.deepcopy(model).double()
    tokens, labels = (torch.from_numpy(x).flatten() for x in (batch.tokens, batch.labels))
    hidden = naive(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
    logits = hidden @ F.normalize(naive.lm_head.weight, dim=-1).T
    ce = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    z = logits[labels != IGNORED].amax(1)
    total = ce + Z_WEIGHT * z.square().sum()
    (total / batch.num_labels).backward()
    sums = {"loss": total.item(), "ce": ce.item(), "z": z.sum().item()}
    return sums, {name: p.grad for name, p in naive.named_parameters() if p.grad is not None}


def test_labels_may_be_any_ids(batch: Batch) -> None:
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    expected, gradients = reference(model, batch)
    engine = LocalEngine(model, AdamWConfig())
    sums = engine.accumulate([batch], NextToken(Z_WEIGHT), divisor=batch.num_labels)
    assert sums == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        right = gradients[name]
        assert parameter.grad is not None
        assert (parameter.grad.double() - right).norm() <= 1e-5 * right.norm(), name
