"""The plan's memory against measured peaks, on CPU ranks over gloo.

    python benchmarks/plan_memory.py [--cases 12] [--seed 0] [--json]

Shapes and layouts are drawn from the seed; nothing of the formula is fitted to them. A case
is the layout's real engine on real ranks. What is measured is the high-water mark of resident
memory (reset through /proc/self/clear_refs) over three steps, minus what was resident before
the engine was made, of the rank that holds most. Resident memory, and not torch's tracker of
tensors, because it has what passes by torch's allocator too (gloo's and oneDNN's buffers) and
sees pages only where they are touched, as DeepSpeed's buckets are. glibc is told to map large
blocks by themselves, so that what is freed is gone and counts no more.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import socket
import sys
import traceback
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

#: What a rank needs, imported once: each rank is forked from there.
PRELOADED = [
    "deepspeed", "bc2.data.loader", "bc2.train.engines.deepspeed", "bc2.train.memory.estimate",
    "bc2.train.objective", "bc2.train.peak",
]  # fmt: skip

#: For glibc, before any rank starts: see above.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

#: Layouts that are drawn from, with their ranks.
LAYOUTS: list[tuple[dict[str, Any], int]] = [
    ({}, 1),
    ({"zero": 0}, 2),
    ({"zero": 1}, 2),
    ({"zero": 2}, 2),
    ({"zero": 3}, 2),
    ({"tensor": 2}, 2),
    ({"sequence": 2}, 2),
    ({"tensor": 2, "zero": 2}, 4),
    ({"sequence": 2, "zero": 3}, 2),
    ({"zero": 1}, 4),
    ({"zero": 3}, 4),
    ({"sequence": 2, "zero": 1}, 2),
]

STEPS = 3


def draw(number: int, rng: random.Random) -> dict[str, Any]:
    """A case: every layout in turn, all else at random."""
    parallel, world = LAYOUTS[number % len(LAYOUTS)]
    heads = rng.choice([4, 8, 12])
    hidden = heads * 64
    length = rng.choice([128, 256, 512])
    model = {
        "vocab_size": 128 * rng.randrange(16, 128),
        "hidden_size": hidden,
        "intermediate_size": 128 * round(hidden * rng.uniform(2.0, 3.5) / 128),
        "num_layers": rng.randrange(3, 9),
        "num_heads": heads,
        "context_length": length,
        "position": rng.choice(["rope", "rope", "alibi"]),
        "norm_head": rng.random() < 0.8,
    }
    return {
        "model": model,
        "parallel": parallel,
        "world": world,
        "length": length,
        "rows": max(1, rng.choice([256, 512, 1024, 2048]) // length),
        "micro_batches": rng.choice([1, 2]),
        "precision": rng.choice(["bf16", "fp32"]),
        "checkpointing": rng.choice([0, 0, 1, 2, 3]),
    }


def predict(case: dict[str, Any]) -> int:
    from bc2.model.model_config import ModelConfig
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.memory.estimate import estimate
    from bc2.train.memory.shape import TrainingShape

    shape = TrainingShape(
        ModelConfig(**case["model"]),
        case["rows"],
        case["length"],
        case["precision"],
        case["checkpointing"],
        accumulated=case["micro_batches"] > 1,
        parallel=ParallelConfig(**case["parallel"]),
        world=case["world"],
    )
    return estimate(shape).total


def measure(case: dict[str, Any]) -> int:
    """Bytes at the peak, of the rank that holds most."""
    context = multiprocessing.get_context("forkserver")
    answers: Queue[tuple[int, int | str]] = context.Queue()
    port = _free_port()
    ranks = [
        context.Process(target=_rank, args=(case, rank, port, answers))
        for rank in range(case["world"])
    ]
    for rank in ranks:
        rank.start()
    found = [answers.get(timeout=500)[1] for _ in ranks]
    for rank in ranks:
        rank.join(30)
        rank.kill()
    failed = [answer for answer in found if isinstance(answer, str)]
    if failed:
        raise RuntimeError(failed[0])
    return max(answer for answer in found if isinstance(answer, int))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def _rank(
    case: dict[str, Any], rank: int, port: int, answers: Queue[tuple[int, int | str]]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case["world"], "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ["MASTER_ADDR"] = "localhost"
    # DeepSpeed prints on stdout.
    os.dup2(2, 1)
    try:
        answers.put((rank, _peak(case)))
    except BaseException:
        answers.put((rank, traceback.format_exc()))


def _peak(case: dict[str, Any]) -> int:
    import torch

    from bc2.parallel.mesh import make_mesh
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.train.peak import forget_peak, host_peak

    torch.set_num_threads(1)
    mesh = make_mesh(ParallelConfig(**case["parallel"]), torch.device("cpu"), 300)
    # Once small: what code, kernels and connections take is not the model's.
    tiny = {**case["model"], "vocab_size": 256, "num_layers": 1}
    _train({**case, "model": tiny, "rows": 1}, mesh)
    gc.collect()
    before = forget_peak()
    _train(case, mesh)
    return host_peak() - before


def _train(case: dict[str, Any], mesh: Any) -> None:
    import numpy as np

    from bc2.data.loader import pack, total_weights
    from bc2.train.pretrain.next_token import NextToken

    engine = _engine(case, mesh)
    rng = np.random.default_rng(mesh.data.rank)
    shape = (case["rows"], case["length"] + 1)
    ids = np.zeros(case["rows"], np.int64)
    for _ in range(STEPS):
        drawn = [
            rng.integers(3, case["model"]["vocab_size"], shape)
            for _ in range(case["micro_batches"])
        ]
        batches = [pack(tokens, ids, -1) for tokens in drawn]
        tokens = engine.agree(total_weights(batches), 0, False).weights["tokens"]
        engine.accumulate(batches, NextToken(2e-4), divisor=tokens)
        engine.update(1e-3, norm=engine.gradient_norm(), clip_norm=0.5)


def _engine(case: dict[str, Any], mesh: Any) -> Any:
    import torch

    from bc2.model.model_config import ModelConfig
    from bc2.parallel.build import InitialWeights, build_model
    from bc2.parallel.parallel_config import ParallelConfig
    from bc2.parallel.state import HeldTensors
    from bc2.train.engines.deepspeed import DeepSpeedEngine
    from bc2.train.engines.local import LocalEngine
    from bc2.train.optimizer_config import AdamWConfig

    model, parallel = ModelConfig(**case["model"]), ParallelConfig(**case["parallel"])
    settings: dict[str, Any] = {
        "precision": case["precision"],
        "checkpointing": case["checkpointing"],
    }
    if parallel.zero:
        device = torch.device("cpu")
        return DeepSpeedEngine(model, AdamWConfig(), parallel, mesh, device=device, **settings)
    built = build_model(model, mesh).to_empty(device="cpu")
    engine = LocalEngine(built, AdamWConfig(), mesh=mesh, **settings)
    engine.restore(InitialWeights(model, 0), HeldTensors())
    return engine


def describe(case: dict[str, Any]) -> tuple[str, str]:
    """A shape and a layout as one writes them in a table."""
    model, parallel = case["model"], case["parallel"]
    shape = (
        f"{model['num_layers']}x{model['hidden_size']}/{model['intermediate_size']} "
        f"V{model['vocab_size']} {model['position']}, {case['rows']}x{case['length']} "
        f"x{case['micro_batches']} {case['precision']}"
    )
    said = " ".join(f"{name}={value}" for name, value in parallel.items()) or "local"
    return shape, f"{case['world']} ranks {said} checkpointing={case['checkpointing']}"


def row(case: dict[str, Any]) -> dict[str, Any]:
    shape, layout = describe(case)
    predicted, measured = predict(case), measure(case)
    error = predicted / measured - 1
    return {
        "shape": shape, "layout": layout, "predicted": predicted, "measured": measured,
        "error": error, "case": case,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--cases", type=int, default=len(LAYOUTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each case")
    parser.add_argument("--given", type=Path, help="cases from a file, a line of JSON each")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    cases = [draw(number, rng) for number in range(asked.cases)]
    if asked.given:
        cases = [json.loads(line) for line in asked.given.read_text().splitlines()]
    os.environ.update({**ALLOCATOR, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"})
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    if not asked.json:
        print("| shape | layout | predicted MB | measured MB | error |\n|---|---|---|---|---|")
    for case in cases:
        found = row(case)
        sizes = " | ".join(f"{found[name] / 1e6:.0f}" for name in ("predicted", "measured"))
        line = f"| {found['shape']} | {found['layout']} | {sizes} | {found['error']:+.1%} |"
        print(json.dumps(found) if asked.json else line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
