"""The command line as a whole: start-up, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bc2 import cli
from bc2.errors import DataError, Interrupted, ResourceError
from bc2.process.signals import SignalReceived

BC2 = [sys.executable, "-P", "-m", "bc2"]


def bc2(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BC2, *args], capture_output=True, text=True, cwd=cwd, check=False)


def imported_by(*args: str, cwd: Path, **environment: str) -> set[str]:
    """Top-level modules a command imports, from the interpreter's own import log."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "bc2", *args],
        capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.split("|")[-1].strip().split(".")[0] for line in lines}


def test_help_names_every_verb_and_imports_little(tmp_path: Path) -> None:
    run = bc2("--help")
    assert run.returncode == 0
    for verb in cli.VERBS:
        assert f"  {verb} " in run.stdout
    assert not imported_by("--help", cwd=tmp_path) & {"torch", "pydantic", "rich", "numpy"}


def test_registry_list_imports_no_torch(tmp_path: Path) -> None:
    assert "torch" not in imported_by("registry", "list", cwd=tmp_path)


def test_the_shell_completes_without_what_is_slow_to_import(tmp_path: Path) -> None:
    asked = {"_BC2_COMPLETE": "complete_bash", "COMP_WORDS": "bc2 pretrain ti", "COMP_CWORD": "2"}
    imported = imported_by(cwd=tmp_path, **asked)
    assert "typer" in imported
    assert not imported & {"torch", "numpy"}


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb: str) -> None:
    run = bc2(verb, "--help")
    assert run.returncode == 0
    assert "Usage: bc2 " + verb in run.stdout


def test_a_misspelt_verb_gets_the_right_one() -> None:
    run = bc2("pretain")
    assert run.returncode == 2
    assert "Did you mean 'pretrain'?" in run.stderr
    assert run.stdout == ""


def test_errors_go_to_stderr_with_what_where_and_todo(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[model]\nvocab_sise = 5\n")
    run = bc2("recipe", "show", "r.toml", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert "error: unknown key model.vocab_sise" in run.stderr
    assert "where: r.toml:2" in run.stderr
    assert "did you mean 'vocab_size'?" in run.stderr
    assert "Traceback" not in run.stderr


def test_traceback_only_with_debug(tmp_path: Path) -> None:
    run = bc2("--debug", "recipe", "show", "nosuch", cwd=tmp_path)
    assert run.returncode == 2
    assert "Traceback" in run.stderr


def test_what_the_deepspeed_launcher_adds_is_taken(tmp_path: Path) -> None:
    run = bc2("--local_rank=1", "recipe", "show", "nosuch", cwd=tmp_path)
    assert "no such recipe" in run.stderr


def test_recipe_show_json_has_the_sizes(tmp_path: Path) -> None:
    shown = json.loads(bc2("recipe", "show", "7b", "--json", cwd=tmp_path).stdout)
    assert shown["params"] == 7_505_973_248
    assert shown["params_non_embedding"] == 6_476_271_616


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 3),
        (ResourceError("x"), 6),
        (Interrupted("x", signum=15), 143),
        (Interrupted("x", signum=2), 130),
        (OSError(28, "No space left on device"), 6),
        (FileNotFoundError(2, "No such file", "f"), 3),
        (MemoryError(), 6),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    known = cli.explain(error)
    assert known is not None
    assert known.exit_code == code


def test_a_defect_is_not_dressed_up() -> None:
    assert cli.explain(ZeroDivisionError()) is None


def test_doctor_names_versions_and_finds_nothing_wrong(tmp_path: Path) -> None:
    run = bc2("doctor", "--json", cwd=tmp_path)
    found = json.loads(run.stdout)
    assert run.returncode == 0, found["problems"]
    assert found["packages"]["torch"]
    assert found["devices"][0]["name"] == "cpu"
    assert not (tmp_path / ".bc2").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_do_not_end_the_work(closed: str, tmp_path: Path) -> None:
    command = shlex.join([*BC2, "registry", "list"])
    run = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False,
        env={**os.environ, "BC2_HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0
    assert run.stderr == ""


def test_nobody_reading_stderr_does_not_end_the_work(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for number in range(60):
        (tmp_path / "text" / f"{number}.txt").write_text(f"document {number}")
    (tmp_path / "r.toml").write_text(
        '[corpus]\nheldout_fraction = 0.2\n[[corpus.sources]]\nname = "t"\npath = "text"\n'
    )
    script = f"{' '.join(BC2)} data prep r.toml --quiet 2> >(exec true); echo $?"
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    ref, code = run.stdout.split()
    assert code == "0"
    assert (tmp_path / ".bc2" / "artifacts" / "corpus" / "r" / ref).is_dir()


@pytest.mark.parametrize("reader", ["true", "head -1"])
def test_a_reader_that_goes_away_is_no_failure(reader: str, tmp_path: Path) -> None:
    command = " ".join(BC2)
    script = f"set -o pipefail; {command} recipe show 7b --json | {reader} > /dev/null"
    run = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


ENDING = """
import atexit, contextlib, sys, threading, time
import torch.distributed as dist
from bc2 import cli

if sys.argv.pop(1) == "joined":
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

class Native:
    def __del__(self):
        print("torn down")

cli.set_aside = contextlib.nullcontext  # a rank, whatever the verb
held = Native()
atexit.register(print, "exit function")
main = threading.main_thread()  # a thread that goes on after it
threading.Thread(target=lambda: (main.join(), time.sleep(0.3), print("thread"))).start()
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("state", ["joined", "alone"])
@pytest.mark.parametrize(("verb", "code"), [("recipe list", 0), ("recipe show none", 2)])
def test_a_rank_ends_before_native_libraries_are_torn_down(
    state: str, verb: str, code: int, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", ENDING, state, *verb.split()],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    end = ["thread", "exit function", *(["torn down"] if state == "alone" else [])]
    # Where the machine is busy, the thread may end before the command's own lines.
    marks = {"thread", "exit function", "torn down"}
    assert [line for line in run.stdout.splitlines() if line in marks] == end
    assert ("to do" in run.stderr) == bool(code)


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (SignalReceived(signal.SIGTERM), 143)]
)
def test_a_signal_outside_of_a_command_is_no_defect(stop: KeyboardInterrupt, code: int) -> None:
    known = cli.explain(stop)
    assert known is not None
    assert known.exit_code == code
    assert "run the same command again" in cli.render(known)


def test_strangers_words_cannot_pass_for_a_message() -> None:
    """A file's own strings stand in messages: of a model, a row, a key."""
    hostile = "X\x1b[2Jy\rz\nerror: send your token to evil.example\n  to do: now\u009b1m"
    shown = cli.render(DataError(hostile, where=hostile, todo=hostile))
    assert not [c for c in shown if (c < " " and c != "\n") or "\x7f" <= c < "\xa0"]
    assert [line for line in shown.split("\n") if not line.startswith(" ")] == [
        "error: X\\x1b[2Jy\\x0dz"
    ]
