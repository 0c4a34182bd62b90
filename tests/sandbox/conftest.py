"""Sandboxes in both modes, of this user and, where this is root, of an ordinary one too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import bc2
from bc2.errors import RunFailed
from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Outcome, Sandbox

NOBODY = 65534


class Elsewhere:
    """A sandbox in another process, of another user."""

    def __init__(self, mode: str, folder: Path):
        self.user = NOBODY
        _copy_for_all(folder)
        self._process = subprocess.Popen(
            [*as_nobody(), str(folder / "driver.py"), mode],
            env={"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if problem := json.loads(self._process.stdout.readline()):
            self.close()
            pytest.skip(problem)

    def run(
        self, candidate: str, tests: str, limits: Limits | None = None, redefines: Any = ()
    ) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [candidate, tests, asdict(limits or Limits()), list(redefines)]
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


DRIVER = """
import json, sys
from dataclasses import asdict
from bc2.errors import RunFailed
from bc2.sandbox.limits import Limits
from bc2.sandbox.run import Sandbox

try:
    sandbox = Sandbox.open(sys.argv[1])
except RunFailed as error:
    print(json.dumps(str(error)), flush=True)
    sys.exit()
print("null", flush=True)
with sandbox:
    for line in sys.stdin:
        candidate, tests, limits, redefines = json.loads(line)
        outcome = sandbox.run(candidate, tests, Limits(**limits), redefines)
        print(json.dumps(asdict(outcome)), flush=True)
"""


def _copy_for_all(folder: Path) -> None:
    """The room and all it needs, where any user can read it."""
    source = Path(bc2.__file__).parent
    (folder / "bc2").mkdir(parents=True, exist_ok=True)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(source / name, folder / "bc2")
    for name in ("process", "sandbox"):
        shutil.copytree(source / name, folder / "bc2" / name, dirs_exist_ok=True)
    (folder / "driver.py").write_text(DRIVER)
    subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)


def as_nobody() -> list[str]:
    """How to start Python as an ordinary user; skips where this cannot be."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root, with setpriv, can start another user's sandbox")
    change = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    recent = (
        "import json, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True);"
        " sys.exit(sys.version_info < (3, 11))"
    )
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        tried = subprocess.run([*change, python, "-c", recent], capture_output=True, cwd="/")
        if tried.returncode == 0:
            return [*change, python]
    pytest.skip("no Python >= 3.11 that an ordinary user may start")


@pytest.fixture(scope="session", params=["namespaces", "landlock"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def sandbox(mode: str) -> Iterator[Sandbox]:
    """A sandbox of this user."""
    try:
        made = Sandbox.open(mode)  # type: ignore[arg-type]
    except RunFailed as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.fixture(scope="session", params=["me", "nobody"])
def anyones(request: pytest.FixtureRequest, mode: str) -> Iterator[Any]:
    """A sandbox; its `user` is whose files and processes it might reach."""
    if request.param == "me":
        made: Any = request.getfixturevalue("sandbox")
        made.user = os.geteuid()
        yield made
        return
    # Not pytest's folder, which is for its owner only.
    with tempfile.TemporaryDirectory(prefix="bc2-for-all-") as folder:
        made = Elsewhere(mode, Path(folder))
        yield made
        made.close()
