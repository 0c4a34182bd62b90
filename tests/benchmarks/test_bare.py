"""bc2's core needs little: it is imported and trains where all else is hidden."""

import json
import os
import subprocess
import sys
from pathlib import Path

BARE = Path(__file__).parent / "bare"

#: What the stages of benchmarks/gpu.py use.
CORE = [
    "bc2.bench.llama", "bc2.data.loader", "bc2.generate.engine", "bc2.model.transformer",
    "bc2.parallel.build", "bc2.parallel.mesh", "bc2.parallel.state", "bc2.train.deterministic",
    "bc2.train.engines.base", "bc2.train.engines.local", "bc2.train.engines.make",
    "bc2.train.memory.estimate", "bc2.train.micro_batch_trial", "bc2.train.objective",
    "bc2.train.optimizer", "bc2.train.peak", "bc2.train.stream",
]  # fmt: skip

PROGRAM = """\
import importlib, importlib.util, json, sys

sys.path[:0] = sys.argv[1:3]
for name in json.loads(sys.argv[3]):
    importlib.import_module(name)
import torch
from gpu_stages.training import SMALL, counting, engine_of, packed, step

engine = engine_of(SMALL, torch.device("cpu"), "fp32")
losses = [step(engine, [packed(counting(SMALL, 4, 64, n))]).loss for n in range(3)]
hidden = ("pydantic", "sqlalchemy", "zstandard", "deepspeed", "datasets", "lm_eval", "orjson")
found = [name for name in hidden if importlib.util.find_spec(name) or name in sys.modules]
print(json.dumps({"losses": losses, "found": found}))
"""


def test_the_core_trains_on_a_bare_machine() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-P", "-c", PROGRAM, str(root), str(root / "benchmarks")]
    done = subprocess.run(
        [*command, json.dumps(CORE)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(BARE)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["found"] == []
    assert said["losses"][2] < said["losses"][0]
