"""Attempts at a run: killed at a step, over before it, failed; without a training."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bc2.errors import RunFailed
from bc2.ranks import RankFailed
from bc2.verify import attempts
from bc2.verify.attempts import TriedRun, train_to_end, train_with_kills
from bc2.verify.scratch import ScratchHome

#: Logs so many steps, one every hundredth of a second, as a run would.
RUN = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1]) / "runs" / "x-0123456789ab"
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text("{}")
log = (folder / "timing.jsonl").open("a")
for step in range(1, int(sys.argv[2]) + 1):
    row = {"event": "step", "step": step, "step_s": 0.01, "time": 0.0, "elapsed": 0.0}
    print(json.dumps(row), file=log, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have attempts be programs: each of those given, the last of them from then on."""
    start = subprocess.Popen

    def install(*programs: str, steps: int = 500) -> ScratchHome:
        left = list(programs)

        def started(command: list[str], **named: Any) -> subprocess.Popen[bytes]:
            assert command[1:5] == ["-P", "-m", "bc2", "pretrain"]
            program = left.pop(0) if len(left) > 1 else left[0]
            return start([sys.executable, "-c", program, str(tmp_path), str(steps)], **named)

        monkeypatch.setattr(attempts.subprocess, "Popen", started)
        return ScratchHome(tmp_path)

    return install


def kill(home: ScratchHome, kills: int = 1, steps: int = 4) -> list[attempts.Kill]:
    return train_with_kills(tried(home), kills=kills, steps=steps, rng=random.Random(0))


def tried(home: ScratchHome) -> TriedRun:
    return TriedRun("pretrain", home.path / "x.toml", home, 1)


def test_an_attempt_is_killed_after_a_step_and_the_last_ends(runs: Any) -> None:
    (made,) = kill(runs(RUN, "pass"))
    assert 1 <= made.step < 500
    assert not made.saving


def test_a_run_that_is_over_too_soon_cannot_be_killed(runs: Any) -> None:
    with pytest.raises(RunFailed, match="over before it could be killed") as caught:
        kill(runs("pass"), kills=2)
    assert "--steps" in str(caught.value.todo)


def test_an_attempt_that_fails_before_its_step_is_the_error(runs: Any) -> None:
    said = "print('a line'); sys.exit('error: no tokens\\n  to do: make some')"
    with pytest.raises(RankFailed, match="no tokens") as caught:
        kill(runs(f"import sys; {said}"))
    assert caught.value.exit_code == 1
    assert "a line" not in str(caught.value)


def test_an_attempt_that_a_signal_killed(runs: Any) -> None:
    home = runs("import os; os.kill(os.getpid(), 15)")
    with pytest.raises(RunFailed, match=f"killed by {signal.SIGTERM.name}"):
        train_to_end(tried(home))


def test_an_attempt_that_ends_while_it_is_about_to_be_killed_is_none(
    runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts.TrainingProcess, "kill", lambda self: self.process.wait())
    with pytest.raises(RunFailed, match="over before it could be killed"):
        kill(runs(RUN, steps=20))
    with pytest.raises(RankFailed, match="a tried run ended with 7"):
        kill(runs(f"{RUN}\nsys.exit(7)", steps=20))


def test_a_tried_run_imports_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    with monkeypatch.context() as patch:

        def record(command: list[str], **_: Any) -> None:
            started.append(command)

        patch.setattr(attempts.subprocess, "Popen", record)
        home = ScratchHome(tmp_path)
        attempts.TrainingProcess(TriedRun("reward", tmp_path / "r.toml", home, 2))
    (command,) = started
    assert command[command.index("bc2") :] == [
        "bc2", "reward", str(tmp_path / "r.toml"), "--quiet", "--nproc", "2",
    ]  # fmt: skip
    (tmp_path / "typer.py").write_text("raise ImportError('of the working directory')")
    start = [*command[: command.index("bc2") + 1], "--version"]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
