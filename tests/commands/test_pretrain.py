"""`bc2 pretrain` from the command line: what it imports before it says anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bc2.cli import main

#: Runs bc2 until it first writes to stderr, and says which modules were imported by then.
UNTIL_THE_FIRST_LINE = """\
import os, sys

class FirstLine:
    def write(self, text):
        print(*sorted(sys.modules), file=sys.__stdout__, flush=True)
        os._exit(0)

    def flush(self):
        pass

sys.stderr = FirstLine()
from bc2.cli import main
main(sys.argv[1:])
"""

#: What takes long to import and is of use only when there is work: torch's compiler, drawing,
#: distributed training, data frames.
LATER = {
    "torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "sympy", "matplotlib",
    "deepspeed", "datasets", "scipy", "bc2.model.transformer", "bc2.train.loop",
}  # fmt: skip


def test_nothing_heavy_but_torch_is_imported_before_the_first_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", UNTIL_THE_FIRST_LINE, "pretrain", "tiny"],
        env={**os.environ, "BC2_HOME": str(tmp_path / "home")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert LATER & set(done.stdout.split()) == set()


def test_a_head_of_values_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", "tiny", "--set", "model.head=scalar"])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert 'pretraining needs a language head, and model.head = "scalar"' in said
    assert "--set model.head=scalar" in said
    assert not (tmp_path / "home").exists()
