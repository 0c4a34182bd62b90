"""Which failures of ranks are worth another start, and how many starts without a step are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bc2 import errors
from bc2.launch.restarts import PAUSE_S, Restarts


def test_what_passes_is_started_again_and_what_lasts_is_not() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    lasting = {kind.__name__ for kind in kinds if getattr(kind, "lasting", False)}
    assert lasting == {
        "UsageError", "RecipeError", "DataError", "RefError", "IntegrityError", "ResourceError",
        "BadTraining",
    }  # fmt: skip


def test_a_lasting_error_ends_it(tmp_path: Path) -> None:
    restarts = Restarts(5, tmp_path / "steps")
    assert restarts.again(lasting=False) == 0
    assert restarts.refused is None
    assert restarts.again(lasting=True) is None
    assert restarts.refused == "the same would come again"


def test_starts_that_come_no_further_are_counted(tmp_path: Path) -> None:
    restarts = Restarts(50, tmp_path / "steps")

    def ends_at(step: int) -> float | None:
        restarts.steps.write_text(f"{step:20}")
        return restarts.again(lasting=False)

    assert ends_at(7) == 0
    assert [ends_at(7), ends_at(3)] == [PAUSE_S, 2 * PAUSE_S]
    # A step further, and patience begins anew.
    assert ends_at(8) == 0
    assert [ends_at(8), ends_at(8), ends_at(8)] == [PAUSE_S, 2 * PAUSE_S, None]
    assert restarts.refused == "the last 3 starts came no further than step 8"
    assert restarts.made == 6


def test_no_more_than_were_asked_for(tmp_path: Path) -> None:
    restarts = Restarts(1, tmp_path / "steps")
    assert restarts.again(lasting=False) == 0
    assert restarts.again(lasting=False) is None
    assert restarts.refused == "all 1 restarts are used up"
    nobody_asked = Restarts(0, tmp_path / "steps")
    assert nobody_asked.again(lasting=True) is None
    assert nobody_asked.refused is None


#: Imported by every Python below: kills ranks at once.
FAULT = """\
import os, signal
if "RANK" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
"""

#: `bc2` without the pauses.
IMPATIENT = """\
import sys
import bc2.launch.restarts
bc2.launch.restarts.PAUSE_S = 0.0
from bc2.__main__ import main
main(sys.argv[1:])
"""


def test_a_run_whose_ranks_die_at_once_ends(small: Path) -> None:
    (small / "fault").mkdir()
    (small / "fault" / "sitecustomize.py").write_text(FAULT)
    command = ["pretrain", "small.toml", "--nproc", "2", "--max-restarts", "50"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPATIENT, *command],
        env={**os.environ, "PYTHONPATH": str(small / "fault")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    told = [line for line in done.stderr.splitlines() if "starting all ranks again" in line]
    assert len(told) == 3
    assert told[0].endswith("was killed by SIGKILL; starting all ranks again (restart 1 of 50)")
    assert done.stderr.count("error:") == 1
    assert "not started again: the last 3 starts came no further than step 0" in done.stderr


def test_a_rank_says_its_step_and_whether_its_error_lasts(tmp_path: Path) -> None:
    code = "from bc2.ranks import report_error, report_step\n"
    code += "report_step(9); report_step(12)\nassert report_error('error: x', lasting=True)"
    environment = {
        **os.environ,
        "BC2_LAUNCHED": "--nproc 2",
        "BC2_STEPS_FILE": str(tmp_path / "steps"),
        "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json"),
        "LOCAL_RANK": "0",
    }
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True)
    assert int((tmp_path / "steps").read_text()) == 12
    word = json.loads((tmp_path / "error.json").read_text())["message"]
    assert (word["message"], word["lasting"]) == ("error: x", True)
