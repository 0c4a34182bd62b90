"""Streams that are closed, full, gone or of another encoding: real descriptors, real processes."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import shlex
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import warmed

from bc2.console import Output
from bc2.process.standard_streams import READABLE, lost_output
from bc2.registry import Registry

BC2 = [sys.executable, "-P", "-m", "bc2"]
COMMAND = shlex.join(BC2)

#: A C locale that Python is told not to replace by UTF-8.
POSIX = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

Ended = subprocess.CompletedProcess[bytes]


def slow(*values: object) -> list[object]:
    """Further values of a parameter, for the whole matrix: one of each kind is tried by default."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def shell(script: str, cwd: Path, **environment: str) -> Ended:
    return subprocess.run(
        ["bash", "-c", script.replace("bc2 ", f"{COMMAND} ")], capture_output=True, cwd=cwd,
        check=False, timeout=500, env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )  # fmt: skip


def script(program: str, redirected: str = "", **environment: str) -> Ended:
    """Run a Python program after `install`."""
    whole = f"from bc2.process.standard_streams import install; install()\n{program}"
    return shell(
        f"{shlex.join([sys.executable, '-P', '-c', whole])} {redirected}", Path(), **environment
    )


@pytest.mark.parametrize(
    "closed", ["2>&-", ">&- 2>&-", "2>/dev/full", *slow("2>&- <&-", "2</dev/null")]
)
@pytest.mark.parametrize(
    "words", ["recipe check nosuch", *slow("--debug recipe check nosuch", "nosuch")]
)
def test_an_error_that_cannot_be_said_lands_nowhere_else(
    words: str, closed: str, tmp_path: Path
) -> None:
    run = shell(f"bc2 {words} {closed}", tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (2, b"", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", ["recipe list", "registry list --json", "--help",
              *slow("recipe list --json", "--version", "recipe --help", "doctor")],
)  # fmt: skip
def test_a_result_that_is_lost_is_an_error(words: str, tmp_path: Path) -> None:
    run = shell(f"bc2 {words} >/dev/full", tmp_path)
    assert run.returncode == 1
    assert run.stderr.endswith(
        b"error: the result could not be written: no space left on device\n  where: stdout\n"
        b"  to do: run the same again with stdout where there is room for it\n"
    )
    assert b"Traceback" not in run.stderr


def test_a_lost_result_hides_no_other_failure(tmp_path: Path) -> None:
    run = shell("bc2 registry show nosuch --json >/dev/full", tmp_path)
    assert run.returncode == 4
    assert b"could not be written" not in run.stderr


@pytest.mark.parametrize("words", ["--help", "recipe list --json", *slow("recipe list --help")])
def test_a_reader_that_goes_away_ends_nothing(words: str, tmp_path: Path) -> None:
    run = shell(f"set -o pipefail; bc2 {words} | exec true", tmp_path)
    assert (run.returncode, run.stderr) == (0, b"")


def test_an_artifact_is_made_though_its_ref_cannot_be_said(small: Path) -> None:
    run = shell("bc2 data tokenize small.toml --json >/dev/full", small)
    assert run.returncode == 0
    assert b"warning: the work is done, but its result could not be written: no space" in run.stderr
    assert shell("bc2 data tokenize small.toml >/dev/full 2>/dev/full", small).returncode == 0


@pytest.mark.parametrize("redirected", ["--nproc 2 >/dev/full 2>&-", *slow(">&- 2>&- <&-")])
def test_a_run_trains_to_its_end_though_nobody_can_read_of_it(redirected: str, small: Path) -> None:
    run = shell(f"bc2 pretrain small.toml {redirected}", small)
    assert (run.returncode, run.stdout) == (0, b"")
    (made,) = Registry.open(small / "home").list(kind="checkpoint", name="small", limit=1)
    assert made.position.step == 24
    # What was said has become part of no file.
    logs = [path for path in small.rglob("*.jsonl") if b"bc2" in path.read_bytes()]
    assert logs == []


def test_a_run_trains_to_its_end_on_a_full_disk_of_logs(small: Path) -> None:
    with open("/dev/full", "wb") as full:
        run = warmed.run([*BC2, "pretrain", "small.toml"], stdout=full, stderr=full)
        assert run.returncode == 0
        (made,) = Registry.open(small / "home").list(kind="checkpoint", name="small", limit=1)
        assert made.position.step == 24
        # Answers that nobody gets are not asked for; those in a file are there.
        (small / "prompts.txt").write_text("the\n" * 50)
        words = [*BC2, "generate", "--file", "prompts.txt", "--max-new-tokens", "4"]
        lost = warmed.run([*words, "--jsonl"], stdout=full, stderr=subprocess.PIPE)
        texts = warmed.run([*words, "--quiet"], stdout=full, stderr=subprocess.PIPE)
        out = warmed.run([*words, "--out", "o.jsonl"], stdout=full, stderr=subprocess.PIPE)
    assert (lost.returncode, texts.returncode, out.returncode) == (1, 1, 0)
    for run in (lost, texts):
        assert b"answers written: at least 0\nerror: the result could not be written" in run.stderr
    assert b"the work is done, but" in out.stderr
    assert len((small / "o.jsonl").read_text().splitlines()) == 50


def test_a_run_outlives_its_terminal(small: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\0\x64\0\0\0\0\0")
    run = warmed.Popen(
        [*BC2, "pretrain", "small.toml", "--set", "pretrain.length=60 steps"], cwd=small,
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown, until = b"", time.monotonic() + 200
    # A bar of rich, drawn by its thread from now on.
    while b"\xe2\x94\x81" not in shown and time.monotonic() < until:
        if select.select([ours], [], [], 1)[0]:
            shown += os.read(ours, 1 << 16)
    os.close(ours)
    assert "━".encode() in shown
    assert run.poll() is None
    assert run.wait(300) == 0
    (made,) = Registry.open(small / "home").list(kind="checkpoint", name="small", limit=1)
    assert made.position.step == 60


LIBRARIES = """
import logging, sys, typer, warnings
from rich.console import Console
logging.basicConfig(); logging.warning("logged")
warnings.warn("warned")
Console(stderr=True).print("[bold]drawn")
typer.echo("echoed"); typer.echo("echoed", err=True)
print("printed", file=sys.__stderr__); print("more " * 10000, file=sys.stderr)
sys.stdout.buffer.write(b"bytes"); sys.stderr.flush(); sys.stdout.flush()
"""


@pytest.mark.parametrize("to", [">&- 2>&-", *slow(">/dev/full 2>/dev/full", ">/dev/full 2>&1 <&-")])
def test_no_library_is_ended_by_what_it_prints(to: str) -> None:
    # 120 is Python's own code where it could not flush at its exit.
    assert script(LIBRARIES, to).returncode == 0
    assert script(LIBRARIES, to, PYTHONUNBUFFERED="1").returncode == 0
    assert script(f"{LIBRARIES}\nraise ZeroDivisionError", to).returncode == 1


def test_what_is_opened_first_does_not_become_stderr(tmp_path: Path) -> None:
    path = tmp_path / "opened"
    program = f"opened = open({str(path)!r}, 'w'); import os; os.write(2, b'noise'); print('said')"
    assert script(program, "2>&-").stdout == b"said\n"
    assert path.read_bytes() == b""
    child = "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'import sys; "
    child += "sys.stderr.write(str(sys.stdin.fileno()))']).returncode)"
    assert script(child, "2>&- <&-").stdout == b"0\n"


def test_a_full_disk_loses_the_result_from_there_on(tmp_path: Path) -> None:
    kept = tmp_path / "out"
    limited = f"trap '' XFSZ; ulimit -f 1; bc2 recipe list --json > {kept}"
    run = shell(limited, tmp_path)
    assert run.returncode == 1
    assert b"the result could not be written: file too large" in run.stderr
    assert len(kept.read_bytes()) <= 1024


def test_a_pipe_that_does_not_block_gets_all_of_it() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    program = (
        "from bc2.process.standard_streams import install; install(); import sys\n"
        "print('x' * 400_000); print('y' * 100_000, file=sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdout=theirs, stderr=theirs
    ) as run, open(ours, "rb") as stream:  # fmt: skip
        os.close(theirs)
        time.sleep(1)  # until the pipe is full
        read = stream.read()
    assert run.returncode == 0
    assert (read.count(b"x"), read.count(b"y")) == (400_000, 100_000)


RECIPE = """\
name = "r"
description = "语料 · café 😀"

[corpus]
heldout_fraction = 0.2

[[corpus.sources]]
name = "t"
path = "文本"
"""


@pytest.fixture
def chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "家"))
    (tmp_path / "语料.toml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "文本").mkdir()
    for number in range(60):
        text = f"第 {number} 篇文档"
        (tmp_path / "文本" / f"第{number}.txt").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("encoding", ["ascii", "gbk", *slow("latin-1", "utf-16", "ascii:strict")])
def test_any_encoding_of_the_streams_prints_all_of_it(encoding: str, chinese: Path) -> None:
    codec = encoding.partition(":")[0]
    environment = {"PYTHONIOENCODING": encoding}
    shown = shell("bc2 recipe show 语料.toml --json", chinese, **environment)
    assert json.loads(shown.stdout.decode(codec))["description"] == "语料 · café 😀"
    table = shell("bc2 recipe show 语料.toml", chinese, **environment)
    assert table.returncode == 0
    said = table.stdout.decode(codec)
    lacking = "\\u8bed\\u6599 - caf\\xe9" if codec == "ascii" else "caf"
    assert lacking in said
    wrong = shell("bc2 recipe check 没有.toml", chinese, **environment)
    assert wrong.returncode == 2
    assert "error: no such recipe" in wrong.stderr.decode(codec)
    assert shell("bc2 recipe --help; bc2 语料", chinese, **environment).returncode == 2


@pytest.mark.parametrize(
    "environment", [POSIX, *slow({"PYTHONIOENCODING": "ascii"})], ids=["C", "io"]
)
def test_paths_and_files_do_not_depend_on_the_locale(
    environment: dict[str, str], chinese: Path
) -> None:
    made = shell("bc2 data prep 语料.toml --json", chinese, **environment)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert Path(answer["path"]).is_relative_to(chinese / "家")
    report = shell(f"bc2 data report {answer['ref']}", chinese, **environment)
    assert report.returncode == 0, report.stderr
    drawn = shell(f"bc2 registry lineage {answer['ref']}", chinese, **environment)
    assert drawn.returncode == 0, drawn.stderr
    # As in the locale of most.
    again = shell("bc2 data prep 语料.toml --json", chinese)
    assert json.loads(again.stdout)["digest"] == answer["digest"]


@pytest.mark.parametrize("environment", [POSIX, *slow({})], ids=["C", "utf-8"])
def test_a_name_that_is_no_text_is_said(environment: dict[str, str], tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path) + b"/caf\xe9.toml"
    wrong = shell("bc2 recipe check $'caf\\xe9.toml'", tmp_path, **environment)
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"caf\\udce9.toml" in wrong.stderr
    with open(strange, "w", encoding="utf-8") as stream:
        stream.write(RECIPE)
    shown = shell("bc2 recipe check $'caf\\xe9.toml' --json", tmp_path, **environment)
    assert json.loads(shown.stdout)["path"] == "caf\udce9.toml"
    assert shell("bc2 recipe check $'caf\\xe9.toml'", tmp_path).stdout.startswith(b"caf\\udce9")


def test_what_an_encoding_lacks_is_shown_by_its_looks() -> None:
    shown = "4·10² … ▁▇█ é语😀\udcff".encode("ascii", READABLE)
    assert shown == rb"4-10^2 ... _*# \xe9\u8bed\U0001f600\udcff"
    assert "é语😀".encode("gbk", READABLE).decode("gbk") == "é语\\U0001f600"


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.StringIO()
    monkeypatch.setattr(sys, "stdout", held)
    Output.of(json=True).emit({"a": "é\udcff"})
    assert json.loads(held.getvalue()) == {"a": "é\udcff"}
    assert lost_output() is None
