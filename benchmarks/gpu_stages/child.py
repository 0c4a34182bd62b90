"""One process of a stage: `python -P child.py MODULE STAGE PART RESULTS OUT SCRATCH`.

It ends when its parent is gone, and says where it stands on SIGUSR1.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    module, stage, part, results, out, scratch = sys.argv[1:]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    # The repository is a folder here, not an installed package.
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    # Nor for workers that bc2 starts: where one is installed too, they would run that one.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    import bc2  # noqa: F401 - its environment settings come before any import of torch

    # Deterministic products need it before the first of them; it costs nothing elsewhere.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from gpu_stages.checks import Checks

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        # The small forms are too small to be shared among threads.
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"
        # Graphs are made and counted, but no code is generated, which takes a compiler a minute.
        if hasattr(torch.compiler, "set_default_backend"):
            torch.compiler.set_default_backend("aot_eager")
    checks = Checks(stage, Path(results), out=Path(out), scratch=Path(scratch), device=device)
    importlib.import_module(module).run(checks, part)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
