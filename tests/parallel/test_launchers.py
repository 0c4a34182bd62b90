"""Ranks that another launcher starts: torchrun and DeepSpeed's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bc2.registry import Registry

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"],
    "deepspeed": ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_of_another_launcher_are_one_run(small: Path, launcher: str, port: int) -> None:
    module = ["--module", "bc2"] if launcher == "deepspeed" else ["-m", "bc2"]
    command = [sys.executable, *LAUNCHERS[launcher], str(port), *module]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "pretrain", "small.toml", "--set", "parallel.zero=1"],
        cwd=small, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (finished,) = [a for a in Registry.open().list("checkpoint") if a.finished]
    (run,) = (small / "home" / "runs").iterdir()
    assert '"ranks": 2' in (run / "timing.jsonl").read_text().splitlines()[0]
    assert finished.position is not None
