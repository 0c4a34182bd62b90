"""Accumulates one step of fine-tuning, the smaller last one of a run. Run by `test_sft`.

As `driver.py`, whose model this is. Of each run there are the sums, those of a naive float64
program that takes the samples one by one, and how far each parameter's gradient is from its.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from driver import LENGTH, engine_of, main
from made_samples import drawn, packed
from pairs_driver import gradients_of
from torch import Tensor

from bc2.align.samples.packed_batch import WEIGHT
from bc2.align.samples.row_stream import RowStream
from bc2.align.sft.packed_conversations import PackedSamples
from bc2.align.sft.sft_objective import Answers
from bc2.data.loader import IGNORED
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig

#: Rows of a full step; the last has fewer, and no whole number of micro-batches.
SEQUENCES = 8


def rows_of(run: dict[str, Any]) -> PackedSamples:
    weighted = run["counts"] == "weighted"
    return packed(
        drawn(30, LENGTH, 64, weighted=weighted), LENGTH,
        weighted=weighted, by_sample=run["counts"] == "samples",
    )  # fmt: skip


def naive(
    model: Transformer, rows: PackedSamples, numbers: range
) -> tuple[float, dict[str, Tensor]]:
    """The mean over weights, of the samples of some rows, one after another."""
    wide = copy.deepcopy(model).double()
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for sample in (one for number in numbers for one in rows.row(number)):
        tokens = torch.from_numpy(sample.tokens.astype(np.int64))
        hidden = wide(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
        logits = hidden @ F.normalize(wide.lm_head.weight, dim=-1).T
        labels = torch.from_numpy(sample.labels.astype(np.int64))
        ce = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        counts = torch.from_numpy(sample.weights.astype(np.float64))
        total, weight = total + (ce * counts).sum(), weight + float(counts.sum())
    (total / weight).backward()
    found = {n: p.grad for n, p in wide.named_parameters() if p.grad is not None}
    return total.item(), found


def train(run: dict[str, Any]) -> list[list[float]]:
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    rows = rows_of(run)
    total = rows.first_row(1)
    first = total // SEQUENCES * SEQUENCES
    whole = engine_of({"position": run.get("position", "rope")}, Mesh()).model
    expected, right = naive(whole, rows, range(first, total))
    engine = engine_of(run, mesh)
    stream = RowStream(
        rows, SEQUENCES, total, run["micro"], 60.0, lambda: None, ("made",), mesh.data.rank,
        mesh.data.size,
    )  # fmt: skip
    with stream.steps(first) as steps:
        step = next(steps)
    agreed = engine.agree(step.weights, step.computed, False)
    sums = engine.accumulate(step.batches, Answers(), divisor=agreed.weights[WEIGHT])
    found = gradients_of(engine, mesh, Path(sys.argv[2]) / str(run["number"]))
    assert found.keys() == right.keys()
    errors = [float((found[n] - right[n]).norm() / right[n].norm()) for n in right]
    return [[sums["loss"], sums["ce"]], [expected], errors, [step.sequences, total - first]]


if __name__ == "__main__":
    main(train)
