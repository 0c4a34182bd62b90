"""The processes of the runs that are tried."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from bc2.verify import attempts
from bc2.verify.scratch import ScratchHome


def test_a_tried_run_imports_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    with monkeypatch.context() as patch:

        def record(command: list[str], **_: Any) -> None:
            started.append(command)

        patch.setattr(attempts.subprocess, "Popen", record)
        attempts.TrainingProcess(tmp_path / "r.toml", ScratchHome(tmp_path), 2)
    (command,) = started
    assert command[command.index("bc2") :] == [
        "bc2", "pretrain", str(tmp_path / "r.toml"), "--quiet", "--nproc", "2",
    ]  # fmt: skip
    (tmp_path / "typer.py").write_text("raise ImportError('of the working directory')")
    start = [*command[: command.index("bc2") + 1], "--version"]
    done = subprocess.run(start, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
