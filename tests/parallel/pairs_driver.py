"""Accumulates one step of an algorithm that compares pairs of samples. Run by `test_pairs`.

As `driver.py`, whose model this is. Of each run there are the sums, those of a naive float64
program that takes the samples one by one, and how far each parameter's gradient is from its.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from driver import LENGTH, engine_of, main, through_folder
from torch import Tensor

from bc2.data.loader import IGNORED, SAMPLE, Batch
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.base import Engine
from bc2.train.objective import Loss
from bc2.train.sample_sums import counted_once, mean_by_sample, sum_by_sample, to_tokens
from bc2.train.speed.clock import Clock
from bc2.train.stream import StepData

PAIRS, BETA = 4, 0.1


@dataclass
class Sample:
    """A text, what each position is to say, and what the algorithm adds."""

    tokens: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    """Any ids, or -100: not the next tokens."""
    weights: np.ndarray[Any, Any]
    reference: float
    """What another model gave its labels, in nats."""


def samples() -> list[Sample]:
    """The chosen and the rejected one of each pair, which together fill a row at most."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(PAIRS):
        chosen = int(rng.integers(4, 8))
        for length in (chosen, int(rng.integers(8, LENGTH - chosen + 1))):
            labels = rng.integers(0, 64, length)
            labels[rng.random(length) < 0.2] = IGNORED
            tokens, weights = rng.integers(3, 64, length), rng.random(length)
            supervised = np.count_nonzero(labels != IGNORED)
            reference = float(rng.normal() - 4.0 * supervised)
            found.append(Sample(tokens, labels, weights, reference))
    return found


def in_rows(texts: list[Sample], *, packed: bool) -> Batch:
    """One row for each sample, or for each pair; the rest of a row is padding."""
    each = 2 if packed else 1
    rows = len(texts) // each
    tokens, ids = np.zeros((rows, LENGTH), np.int64), np.full((rows, LENGTH), IGNORED)
    labels, weights = np.full((rows, LENGTH), IGNORED), np.zeros((rows, LENGTH))
    starts = []
    for number, text in enumerate(texts):
        row = number // each
        at = len(texts[number - 1].tokens) if number % each else 0
        span = slice(at, at + len(text.tokens))
        tokens[row, span], labels[row, span], weights[row, span] = (
            text.tokens, text.labels, text.weights,
        )  # fmt: skip
        ids[row, span] = number
        starts += [row * LENGTH + span.start, row * LENGTH + span.stop]
    boundaries = np.unique([*starts, rows * LENGTH]).astype(np.int32)
    return Batch(
        tokens=tokens,
        labels=labels,
        cu_seqlens=boundaries,
        max_seqlen=LENGTH,
        num_labels=int(np.count_nonzero(labels != IGNORED)),
        source_ids=np.zeros(rows, np.int64),
        token_fields={"weight": weights, **({SAMPLE: ids} if packed else {})},
        sample_fields={"reference": np.array([text.reference for text in texts])},
        packed_samples=len(texts) if packed else None,
        extra_weights={"pairs": len(texts) / 2},
    )


class Pairs:
    """A loss of sums over samples, as DPO's, and one of tokens that such a sum goes into."""

    def __call__(self, model: Transformer, batch: Batch, clock: Clock | None = None) -> Loss:
        labels = torch.from_numpy(batch.labels).flatten()
        tokens = torch.from_numpy(batch.tokens).flatten()
        hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
        said = model.language_head.log_probs(hidden, labels).log_probs
        ratios = sum_by_sample(said, batch) - torch.from_numpy(batch.sample_fields["reference"])
        margins = BETA * (ratios[0::2] - ratios[1::2])
        apart = (said - to_tokens(mean_by_sample(said, batch), batch)).square()
        weights = torch.from_numpy(batch.token_fields["weight"]).flatten()
        spread = (weights * apart)[labels != IGNORED].sum()
        total = counted_once(-F.logsigmoid(margins).sum(), batch) + 0.1 * spread
        right = counted_once((margins > 0).sum(), batch)
        margin = counted_once(margins.detach().sum(), batch)
        return Loss(total, {"margin": margin, "right": right, "spread": spread.detach()})


def naive(model: Transformer) -> tuple[list[float], dict[str, Tensor]]:
    """The sums, and the gradients of the loss divided by the number of pairs."""
    model = copy.deepcopy(model).double()
    ratios, spread = [], torch.zeros((), dtype=torch.float64)
    for text in samples():
        tokens = torch.from_numpy(text.tokens)
        hidden = model(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
        logits = hidden @ F.normalize(model.lm_head.weight, dim=-1).T
        known = np.flatnonzero(text.labels != IGNORED)
        said = logits.log_softmax(1)[known, text.labels[known]]
        ratios.append(said.sum() - text.reference)
        weights = torch.from_numpy(text.weights[known])
        spread = spread + (weights * (said - said.mean()).square()).sum()
    margins = BETA * (torch.stack(ratios[0::2]) - torch.stack(ratios[1::2]))
    total = -F.logsigmoid(margins).sum() + 0.1 * spread
    (total / PAIRS).backward()
    sums = [total, margins.sum(), (margins > 0).sum(), spread]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [float(x) for x in sums], gradients


def gradients_of(engine: Engine, mesh: Mesh, folder: Path) -> dict[str, Tensor]:
    """Each parameter's whole gradient: a tenth of it is the first moment after one update."""
    engine.update(0.0, norm=engine.gradient_norm(), clip_norm=1e9)
    stored = through_folder(engine.snapshot(), mesh, folder)
    names = dict(engine.model.named_parameters())
    return {name: 10 * stored.whole(f"exp_avg.{name}").double() for name in names}


def train(run: dict[str, Any]) -> list[list[float]]:
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    expected, right = naive(engine_of({}, Mesh()).model)  # type: ignore[arg-type]
    engine = engine_of(run, mesh)
    texts, size = samples(), 2 * run["pairs"]
    every = [
        in_rows(texts[i : i + size], packed=run.get("packed", False))
        for i in range(0, len(texts), size)
    ]
    step = StepData(0, len(texts), every[mesh.data.rank :: mesh.data.size])
    agreed = engine.agree(step.weights, step.computed, False)
    pairs = agreed.weights["pairs"]
    sums = engine.accumulate(step.batches, Pairs(), divisor=pairs)
    found = gradients_of(engine, mesh, Path(sys.argv[2]) / str(run["number"]))
    assert found.keys() == right.keys()
    errors = [float((found[n] - right[n]).norm() / right[n].norm()) for n in right]
    seen = [*(agreed.weights[name] for name in ("tokens", "samples", "pairs")), agreed.computed]
    return [list(sums.values()), expected, errors, seen]


if __name__ == "__main__":
    main(train)
