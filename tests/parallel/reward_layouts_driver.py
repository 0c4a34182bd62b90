"""Scores answers under the layout that saved a reward model, and under others. Run by
`test_reward_layouts`. As `weights_driver.py`, whose model this is with a scalar head.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from driver import main
from made_pairs import drawn_pairs, packed_pairs
from weights_driver import BASE, SEED, checkpoint, made, make_step, saved

from bc2.align.pairs.in_turns import in_turns
from bc2.align.reward.reward_objective import answer_scores
from bc2.parallel.build import StartWeights
from bc2.parallel.mesh import Mesh, make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.parallel.state import Stored
from bc2.train.engines.base import Engine

PAIRS, ROW = 25, 64
REWARD = BASE.model_copy(update={"head": "scalar"})


def scores(engine: Engine, mesh: Mesh) -> list[float]:
    rows = packed_pairs(drawn_pairs(PAIRS, 14, 64), ROW, ends=True, fields={})
    every = [rows.batch([n]) for n in range(rows.first_row(1))]
    found = np.concatenate([*in_turns(engine.call_model, mesh, every, answer_scores)])
    return [float(score) for score in found.flatten()]


def begin(parallel: dict[str, Any], stored: Stored, mesh: Mesh) -> Engine:
    return made(
        {"trained": "upper", "parallel": parallel}, StartWeights(REWARD, stored, SEED), mesh
    )


def mesh_of(parallel: dict[str, Any]) -> Mesh:
    return make_mesh(ParallelConfig(**parallel), torch.device("cpu"), 120)


def train(run: dict[str, Any]) -> list[list[float]]:
    """Scores under the layout that trained and saved, then under each that loads."""
    folder = Path(sys.argv[2])
    mesh = mesh_of(run["saves"])
    engine = begin(run["saves"], checkpoint(folder, mesh, (torch.bfloat16,)), mesh)
    make_step(engine, 0, mesh)
    found = [scores(engine, mesh)]
    place = folder / f"layout {run['number']}"
    saved(engine, mesh, place)
    weights = Stored.open([place / "model.safetensors"])
    for parallel in run["loads"]:
        mesh = mesh_of(parallel)
        found.append(scores(begin(parallel, weights, mesh), mesh))
    return found


if __name__ == "__main__":
    main(train)
