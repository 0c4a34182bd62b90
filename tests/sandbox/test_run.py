"""The sandbox from outside: order, refusals, and that nothing stays behind."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bc2.errors import RunFailed, UsageError
from bc2.sandbox.limits import Limits
from bc2.sandbox.run import _CHECK_CANDIDATE, Program, Sandbox
from bc2.sandbox.syscalls import MACHINES


def processes_with(word: str) -> list[str]:
    """Command lines that have this word in them, of processes that run."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line:
            found.append(line)
    return found


def wait_until_gone(word: str) -> None:
    for _ in range(200):
        if not processes_with(word):
            return
        time.sleep(0.05)
    pytest.fail(f"still there: {processes_with(word)}")


def test_outcomes_come_in_order_as_programs_are_taken(sandbox: Sandbox) -> None:
    taken = []

    def programs() -> Iterator[Program]:
        for index in range(12):
            taken.append(index)
            wait = 0.2 if index == 0 else 0
            yield Program(
                f"import time\ntime.sleep({wait})\ndef f(): return {index}",
                f"assert False, f() == {index}",
            )

    outcomes = sandbox.run_all(programs(), workers=2)
    first = next(outcomes)
    assert len(taken) <= 4
    details = [first.detail, *(outcome.detail for outcome in outcomes)]
    assert details == ["AssertionError: True"] * 12


def test_programs_run_at_the_same_time(sandbox: Sandbox) -> None:
    begin = time.monotonic()
    slow = Program("import time\ntime.sleep(1)", "")
    assert all(outcome.passed for outcome in sandbox.run_all([slow] * 8, workers=8))
    assert time.monotonic() - begin < 6


def test_an_iterator_that_is_closed_ends_its_programs(sandbox: Sandbox) -> None:
    endless = Program("while True: pass", "f")
    programs = [Program("", ""), endless, endless, endless]
    limits = Limits(cpu_seconds=40, wall_seconds=40)
    outcomes = sandbox.run_all(programs, workers=2, limits=limits)
    assert next(outcomes).passed
    begin = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 10
    assert sandbox.run("", "").passed


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_stays_behind_an_ended_bc2(mode: str, ending: int, tmp_path: Path) -> None:
    script = """
import sys
from bc2.sandbox.limits import Limits
from bc2.sandbox.run import _CHECK_CANDIDATE, Program, Sandbox
sandbox = Sandbox.open(sys.argv[1])
slow = [Program("while True: pass", "f")] * 3
print("ready", flush=True)
with sandbox:
    list(sandbox.run_all(slow, 3, Limits(100, wall_seconds=100)))
"""
    # The sandbox's own directory is in its processes' command lines: it tells them apart.
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, mode],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    if not process.stdout.readline():
        pytest.skip(f"no sandbox with {mode} here")
    time.sleep(0.3)
    assert len(processes_with(str(tmp_path))) > 3
    process.send_signal(ending)
    process.wait(timeout=20)
    wait_until_gone(str(tmp_path))


def test_nothing_stays_behind_a_run(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        sandbox = Sandbox.open(mode)  # type: ignore[arg-type]
    except RunFailed as error:
        pytest.skip(str(error))
    with sandbox:
        assert sandbox.run("open('a', 'w').write('x')", "").passed
        assert len(processes_with(str(tmp_path))) == 1
        (temporary,) = tmp_path.iterdir()
        assert [path.name for path in temporary.iterdir()] == ["outside"]
    assert not processes_with(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_launcher_that_ended_is_no_verdict(mode: str) -> None:
    try:
        sandbox = Sandbox.open(mode)  # type: ignore[arg-type]
    except RunFailed as error:
        pytest.skip(str(error))
    with sandbox:
        sandbox._process.kill()
        sandbox._process.wait()
        with pytest.raises(RunFailed, match="the sandbox failed"):
            sandbox.run("", "")


def test_the_trial_of_a_sandbox_notices_what_is_open(sandbox: Sandbox) -> None:
    open_to_all = os.__file__
    tests = f"found = broken_out({open_to_all!r})\nassert found == ['read', 'list'], found"
    assert sandbox.run(_CHECK_CANDIDATE, tests).detail == ""


#: Denies namespaces and Landlock to this process, as a container may, then opens a sandbox.
DENIED = """
import sys
from bc2.errors import RunFailed
from bc2.sandbox import kernel, syscalls
from bc2.sandbox.run import Sandbox
number = syscalls.this_machine().number
steps = [syscalls._step(0x20, 0)]
for name in sys.argv[1:]:
    steps += [syscalls._step(0x15, number[name], 0, 1), syscalls._answer(0x00050000 | 1)]
steps.append(syscalls._answer(0x7FFF0000))
kernel.no_new_privileges()
kernel.set_seccomp(b"".join(steps))
try:
    with Sandbox.open() as sandbox:
        print(sandbox.mode, sandbox.run("def f(): return 1", "assert f() == 1").verdict)
except RunFailed as error:
    print(error)
"""


def opened_without(*calls: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", DENIED, *calls], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_where_namespaces_are_denied_landlock_stands_in(sandbox: Sandbox) -> None:
    if sandbox.mode != "landlock":
        pytest.skip("about the other mode")
    assert opened_without("unshare") == "landlock passed"
    assert opened_without("mount") == "landlock passed"


@pytest.mark.parametrize("missing", ["landlock_create_ruleset", "seccomp"])
def test_where_both_are_denied_it_is_refused_and_named(missing: str) -> None:
    said = opened_without("unshare", missing)
    assert "programs cannot be run safely here" in said
    assert "no sandbox with namespaces: unshare: Operation not permitted" in said
    assert f"{missing}: Operation not permitted" in said
    assert "user.max_user_namespaces" in said


def test_without_seccomp_namespaces_are_not_enough() -> None:
    said = opened_without("seccomp")
    assert said.count("seccomp: Operation not permitted") == 2


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(RunFailed, match="riscv64") as error:
        Sandbox.open()
    assert all(name in str(error.value) for name in MACHINES)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RunFailed, match="darwin"):
        Sandbox.open()


@pytest.mark.parametrize("name", list(Limits.__dataclass_fields__))
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Limits(**{name: 0})
