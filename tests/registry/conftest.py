"""A registry of its own for each test, and a quick way to publish into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bc2.registry import Artifact, Draft, Kind, Position, Registry, Role, stage_key

Publish = Callable[..., Artifact]


@pytest.fixture(autouse=True)
def _no_ambient_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("BC2_REGISTRY_URL", raising=False)
    monkeypatch.delenv("BC2_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "home")


@pytest.fixture
def publish(registry: Registry) -> Publish:
    """publish(kind, name, step=…, finished=…, parents=…, files=…, role=…) -> Artifact."""

    def make(
        kind: Kind = "corpus",
        name: str = "tiny",
        *,
        seed: int = 0,
        step: int | None = None,
        tokens: int | None = None,
        finished: bool = True,
        parents: tuple[Artifact, ...] = (),
        files: Mapping[str, bytes] | None = None,
        facts: Mapping[str, Any] | None = None,
        role: Role | None = None,
        home: Registry = registry,
    ) -> Artifact:
        digests = tuple(parent.digest for parent in parents)
        key = stage_key(kind, 1, {"seed": seed, "name": name}, digests)
        position = (
            None if step is None else Position(step, step * 100 if tokens is None else tokens)
        )
        draft = Draft(
            kind, name, key, digests, {"seed": seed}, position, finished, dict(facts or {}), role
        )
        with home.stage(draft) as staged:
            default = {"data.bin": f"{kind} {name} {seed} {step}".encode(), "sub/more": b""}
            for path, data in (files or default).items():
                (staged.path / path).parent.mkdir(parents=True, exist_ok=True)
                (staged.path / path).write_bytes(data)
            return staged.publish()

    return make


@pytest.fixture
def in_namespace(tmp_path: Path) -> Callable[[str], Any]:
    """Runs a script as root with mounts of its own; what it said. See ``namespace.py``."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount, or become another user")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    # Another user must come to the home, which pytest keeps to itself.
    top = Path(tempfile.gettempdir())
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to(top) and folder != top:  # one more where pytest has workers
            folder.chmod(0o755)

    def run(script: str) -> Any:
        helpers = Path(__file__).with_name("namespace.py")
        done = subprocess.run(
            ["unshare", "-m", sys.executable, str(helpers), str(tmp_path), script],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
