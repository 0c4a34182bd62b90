"""What a stage finds: checks and figures, appended to results.jsonl as they come."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from gpu_stages.stage_table import ENDS

Status = Literal["passed", "failed", "not run"]

_ROOT = Path(__file__).resolve().parents[2]

#: Characters of an error that a row keeps.
_MOST_TEXT = 600


class Checks:
    """The findings of one stage.

    A check that fails or raises is a row, and the next one is made: what is broken is to be known
    whole.

    Args:
        path: results.jsonl. A row is written by one call, so rows of a killed process are whole.
        out: the folder of the results, for the few files that a stage writes itself.
        scratch: a folder that is gone in the end, for what processes of a stage hand on.

    Attributes:
        small: whether shapes are those for a CPU.
    """

    def __init__(self, stage: str, path: Path, *, out: Path, scratch: Path, device: torch.device):
        self.stage = stage
        self.path = path
        self.out = out
        self.scratch = scratch
        self.device = device
        self.small = device.type != "cuda"
        self._began = time.monotonic()

    def left(self) -> float:
        """Seconds until this process is killed."""
        return float(os.environ[ENDS]) - time.monotonic()

    def true(self, check: str, good: bool, saw: object, why: str) -> None:
        """A check that something holds.

        Args:
            saw: what was found.
            why: what must hold, and the reason.
        """
        self._check(check, "passed" if good else "failed", saw=str(saw), why=why)

    def within(self, check: str, value: float, limit: float, why: str) -> None:
        """A check that an error is at most `limit`; NaN is none.

        Args:
            why: what the error is of, and why it may be as large as that.
        """
        status: Status = "passed" if value <= limit else "failed"
        # JSON has no NaN.
        shown = value if math.isfinite(value) else str(value)
        self._check(check, status, value=shown, limit=limit, why=why)

    def not_run(self, check: str, why: str) -> None:
        """A check that could not be made here."""
        self._check(check, "not run", why=why)

    def figure(self, name: str, value: object, unit: str = "", *, key: bool = False) -> None:
        """A number to report.

        Args:
            key: show it in the table of the summary.
        """
        self._write({"figure": name, "value": value, "unit": unit, "key": key})

    def record(self, kind: str, values: dict[str, Any]) -> None:
        """Something with several values, such as a row of the benchmark."""
        self._write({"record": kind, **values})

    @contextmanager
    def part(self, check: str) -> Iterator[None]:
        """A block whose exceptions are a failure of this check, not of the stage."""
        try:
            yield
            return
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"{type(error).__name__}: {error}"[:_MOST_TEXT]
            saw = f"{text} ({_places(error)})"
            self._check(check, "failed", saw=saw, why="it must run without error")
        # Only now is the exception gone, with what the block had in memory.
        if self.device.type == "cuda":
            self._see_that_it_works()
            torch.cuda.empty_cache()

    def _see_that_it_works(self) -> None:
        """End this process if no kernel can run any more: all checks to come would fail of it."""
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            text = str(error).splitlines()[0]
            raise SystemExit(f"the GPU cannot be used any more by this process: {text}") from error

    def _check(self, check: str, status: Status, **more: object) -> None:
        print(f"{status}: {check} {more}", file=sys.stderr, flush=True)
        self._write({"check": check, "status": status, **more})

    def _write(self, row: dict[str, Any]) -> None:
        row = {"stage": self.stage, **row, "at_s": round(time.monotonic() - self._began, 2)}
        with self.path.open("ab", buffering=0) as stream:
            stream.write(json.dumps(row).encode() + b"\n")


def _places(error: Exception) -> str:
    """Where it was raised, and where in this repository that was called from."""
    frames = traceback.extract_tb(error.__traceback__)
    # Not all of the repository's folder: a virtual environment, with torch, may lie in it.
    own = [str(_ROOT / name) + os.sep for name in ("bc2", "benchmarks", "tests")]
    ours = [f for f in frames if f.filename.startswith(tuple(own)) and f.filename != __file__]
    found = [frames[-1], *ours[:-4:-1]]
    return " < ".join(
        dict.fromkeys(f"{Path(frame.filename).name}:{frame.lineno}" for frame in found)
    )


def relative(found: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    """|found - expected| / |expected|, L2 norms in fp64.

    Args:
        floor: of the norm that is divided by.
    """
    expected = expected.double()
    gap = (found.detach().double().to(expected.device) - expected).norm()
    return float(gap / expected.norm().clamp_min(max(floor, 1e-300)))
