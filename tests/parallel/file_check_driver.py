"""One rank of several that check an artifact's files together. Run by `test_file_check`.

    python file_check_driver.py HOME DIGEST PAUSE

PAUSE: seconds that every chunk of a file takes. Prints "reading" with the first chunk, and at the
end a line of JSON: the names that this rank read, and the error that it ended with.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bc2.errors import Bc2Error
from bc2.parallel import file_check
from bc2.parallel.file_check import check_files_together
from bc2.parallel.long_work import Pace
from bc2.parallel.mesh import make_mesh
from bc2.parallel.parallel_config import ParallelConfig
from bc2.process import signals
from bc2.registry import Registry, payload, verified
from bc2.registry.verified import VerifiedFiles
from bc2.train.rendezvous import explain_lost_rank


def main(home: str, digest: str, pause: float) -> None:
    torch.set_num_threads(1)
    registry = Registry.open(Path(home))
    artifact = registry.get(digest)
    read: list[str] = []
    plain = payload.sha256_file

    def noted(path: Path, seen: Any = None) -> str:
        read.append(str(path.relative_to(artifact.path)))
        return plain(path, seen)

    class SlowPace(Pace):
        def count(self, amount: int) -> None:
            super().count(amount)
            print("reading", flush=True)
            time.sleep(pause)

    payload.sha256_file = noted
    if pause:
        file_check.work_together.__globals__["Pace"] = SlowPace
    # As if every file was written long ago.
    verified._SETTLED_NS = -(10**18)
    mesh = make_mesh(ParallelConfig(), torch.device("cpu"), 120)
    error: Bc2Error | None = None
    try:
        with signals.interruptible(), explain_lost_rank(mesh.world):
            check_files_together(artifact, mesh.side, VerifiedFiles(registry.home, digest))
    except Bc2Error as caught:
        error = caught
    said = error and [error.exit_code, error.what, str(error.where)]
    print(json.dumps({"read": sorted(read), "error": said}), flush=True)
    if error is None:
        dist.destroy_process_group()


if __name__ == "__main__":
    signals.arm()
    try:
        main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
    except signals.SignalReceived as stop:
        sys.exit(128 + stop.signum)
