"""Accumulates one step of pairs, for a reward model or by DPO. Run by `test_preference`.

As `driver.py`, whose model this is. Of each run there are the sums, those of a naive float64
program that takes the answers one by one, how far each parameter's gradient is from its, and how
far the numbers of each answer are.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from driver import engine_of, main
from made_pairs import drawn_pairs, packed_pairs
from pairs_driver import gradients_of
from torch import Tensor

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.dpo_objective import REFERENCE, PreferredAnswers, answer_log_probs
from bc2.align.pairs.in_turns import in_turns
from bc2.align.reward.reward_objective import ALPHA, TARGET, PairwiseScores, answer_scores
from bc2.align.samples.row_stream import RowStream
from bc2.align.samples.sample import Sample
from bc2.data.loader import IGNORED
from bc2.model.transformer import Transformer
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.engines.base import Engine

COUNT, LENGTH, BETA = 9, 64, 0.3
RNG = np.random.default_rng(5)
REFERENCES = RNG.normal(-20, 4, (COUNT, 2))
TARGETS = RNG.normal(size=(COUNT, 2))
ALPHAS = np.repeat(RNG.uniform(0, 1, (COUNT, 1)), 2, axis=1)


def hidden_of(model: Transformer, tokens: np.ndarray) -> Tensor:
    ids = torch.from_numpy(tokens.astype(np.int64))
    return model(ids, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))


def number_of(model: Transformer, sample: Sample) -> Tensor:
    """The score of an answer, or its log-probability."""
    if model.config.head == "scalar":
        whole = np.append(sample.tokens, sample.labels[-1])
        return hidden_of(model, whole)[-1] @ model.score.weight[0]
    logits = hidden_of(model, sample.tokens) @ F.normalize(model.lm_head.weight, dim=-1).T
    labels = torch.from_numpy(sample.labels.astype(np.int64))
    return -F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


def naive(model: Transformer, pairs: Any) -> tuple[float, dict[str, Tensor], list[list[float]]]:
    """The mean loss over pairs, one after another."""
    wide = copy.deepcopy(model).double()
    total, numbers = torch.zeros((), dtype=torch.float64), []
    for k, (chosen, rejected) in enumerate(pairs):
        w, x = number_of(wide, chosen), number_of(wide, rejected)
        numbers.append([float(w), float(x)])
        if wide.config.head == "scalar":
            squares = (w - TARGETS[k, 0]) ** 2 + (x - TARGETS[k, 1]) ** 2
            total = total - F.logsigmoid(w - x) + ALPHAS[k, 0] * squares
        else:
            h = (w - REFERENCES[k, 0]) - (x - REFERENCES[k, 1])
            total = total - F.logsigmoid(BETA * h)
    (total / len(pairs)).backward()
    found = {n: p.grad for n, p in wide.named_parameters() if p.grad is not None}
    return float(total), found, numbers


def objective_of(reward: bool) -> Any:
    if reward:
        return PairwiseScores()
    settings = {"init": "x", "length": "1 steps", "batch_tokens": LENGTH, "micro_batch": 1}
    return PreferredAnswers(DpoConfig(**settings, sequence_length=LENGTH, beta=BETA))


def weights_of(engine: Engine) -> dict[str, Tensor]:
    held = engine.snapshot().weights.fragments
    return {f"{one.name} {one.first}": one.data.clone() for one in held if one.data is not None}


def train(run: dict[str, Any]) -> list[list[float]]:
    mesh = make_mesh(ParallelConfig(**run.get("parallel", {})), torch.device("cpu"), 120)
    reward = run["model"].get("head") == "scalar"
    pairs = drawn_pairs(COUNT, 14, 64)
    fields = {TARGET: TARGETS, ALPHA: ALPHAS} if reward else {REFERENCE: REFERENCES}
    rows = packed_pairs(pairs, LENGTH, ends=reward, fields=fields)
    shape = {"model": run["model"], "position": run.get("position", "rope")}
    expected, right, numbers = naive(engine_of(shape, Mesh()).model, pairs)
    engine = engine_of(run, mesh)
    sequences = -(-rows.first_row(1) // 4) * 4  # some rows of the last micro-batch are empty
    stream = RowStream(
        rows, sequences, rows.first_row(1), run["micro"], 60.0, lambda: None, ("made",),
        mesh.data.rank, mesh.data.size,
    )  # fmt: skip
    function = answer_scores if reward else answer_log_probs
    every = [rows.batch([n]) for n in range(rows.first_row(1))]
    found = np.concatenate([*in_turns(engine.call_model, mesh, every, function)])
    each = (found if reward else found[:, 0]).reshape(-1, 2)
    units = np.concatenate([rows.units(n) for n in range(rows.first_row(1))])
    apart = np.abs(each - np.array(numbers)[units]).max()
    with stream.steps(0) as steps:
        step = next(steps)
    agreed = engine.agree(step.weights, step.computed, False)
    sums = engine.accumulate(step.batches, objective_of(reward), divisor=agreed.weights["pairs"])
    before = weights_of(engine)
    gradients = gradients_of(engine, mesh, Path(sys.argv[2]) / str(run["number"]))
    after = weights_of(engine)  # one update at rate 0
    changed = sum(not torch.equal(before[name], after[name]) for name in before)
    assert gradients.keys() == right.keys()
    errors = [float((gradients[n] - right[n]).norm() / right[n].norm()) for n in right]
    return [[sums["loss"]], [expected], errors, [agreed.weights["pairs"], float(apart), changed]]


if __name__ == "__main__":
    main(train)
