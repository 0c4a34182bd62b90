"""A registry of its own for each test, and a quick way to publish into it."""

from __future__ import annotations

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
