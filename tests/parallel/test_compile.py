"""`compile = true` trains the same model where ranks share it; run as a script, it is one rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

STEPS = 5
LAYOUTS: list[dict[str, Any]] = [
    {"parallel": {"tensor": 2}},
    {"parallel": {"tensor": 2}, "checkpointing": 1},
    {"parallel": {"sequence": 2}},
    {"parallel": {"sequence": 2}, "position": "alibi"},
    {"parallel": {"zero": 2}},
    {"parallel": {"zero": 3}},
]


@pytest.mark.slow
def test_compiled_ranks_give_the_same_losses() -> None:
    """5 steps in fp32 on two ranks, within 1e-5 of the eager ones."""
    runs = [
        {**layout, "steps": STEPS, "compile": compiled}
        for layout in LAYOUTS
        for compiled in (False, True)
    ]
    found = on_ranks(2, runs)
    for eager, compiled in zip(found[::2], found[1::2], strict=True):
        assert len(eager["curve"]) == len(compiled["curve"]) == STEPS
        assert eager["graphs"] == 0 < compiled["graphs"]
        for mine, theirs in zip(compiled["curve"], eager["curve"], strict=True):
            assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
            assert mine[1] == pytest.approx(theirs[1], rel=1e-4)


def on_ranks(world: int, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What rank 0 says of each run."""
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*elastic, f"--nproc-per-node={world}", __file__, json.dumps(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "recompile_limit" not in done.stderr, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"curve"')]
    assert len(lines) == len(runs)
    return [json.loads(line) for line in lines]


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import driver
    import torch
    from torch._dynamo.utils import counters

    from bc2.train.engines import deepspeed, local

    torch.set_num_threads(1)
    engines = local.LocalEngine, deepspeed.DeepSpeedEngine
    for run in json.loads(sys.argv[1]):
        torch._dynamo.reset()
        counters.clear()
        chosen = [partial(engine, compile=run["compile"]) for engine in engines]
        driver.LocalEngine, deepspeed.DeepSpeedEngine = chosen
        found = {"curve": driver.train(run), "graphs": counters["stats"]["unique_graphs"]}
        if os.environ["RANK"] == "0":
            print(f"\n{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
