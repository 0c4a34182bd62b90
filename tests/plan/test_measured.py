"""The formula against real ranks: the first cases of `benchmarks/plan_memory.py`, drawn anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"


@pytest.mark.slow
def test_peaks_of_drawn_shapes_and_layouts_are_within_a_tenth() -> None:
    command = [sys.executable, str(BENCHMARK), "--cases", "6", "--seed", "7", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 6
    off = {each["layout"]: each["error"] for each in found if abs(each["error"]) > 0.1}
    assert not off
