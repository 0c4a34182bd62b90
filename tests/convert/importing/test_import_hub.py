"""A model in the hub's cache: imported, and from then on known by its name there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_hf_models import original

from bc2.convert.importing.import_model import import_model
from bc2.errors import RefError
from bc2.launch.hub_inputs import HubInputs
from bc2.registry import Artifact, Registry

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Bc2 = Callable[..., Any]


@pytest.fixture
def cached(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a model, links and all; the hub itself is switched off."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    original("qwen2").write(tmp_path / "plain")
    repo = tmp_path / "hub" / "models--me--tiny"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for path in (tmp_path / "plain").iterdir():
        path.rename(repo / "blobs" / f"hash-{path.name}")
        os.symlink(f"../../blobs/hash-{path.name}", snapshot / path.name)
    return snapshot


def test_it_is_known_by_its_names(cached: Path, bc2: Bc2) -> None:
    done = bc2("registry", "import", "hf://me/tiny", "--quiet")
    assert done.code == 0, done.err
    registry = Registry.open()
    artifact = registry.resolve("checkpoint/tiny")
    assert done.out.split() == [artifact.ref]
    assert artifact.manifest.facts["imported_from"] == f"hf://me/tiny@{COMMIT}"
    for name in ("hf://me/tiny", "hf://me/tiny@main", f"hf://me/tiny@{COMMIT}"):
        assert registry.resolve(name, "checkpoint") == artifact
        assert registry.resolve(name) == artifact
    tokenizer = registry.resolve("hf://me/tiny", "tokenizer")
    assert artifact.parents == (tokenizer.digest,)
    for other in ("hf://me/tiny@v2", "hf://me/tin", "hf://you/tiny"):
        with pytest.raises(RefError, match="is on a hub"):
            registry.resolve(other)


def test_it_is_imported_once(cached: Path) -> None:
    registry = Registry.open()
    first = import_model(registry, "hf://me/tiny")
    assert import_model(registry, f"hf://me/tiny@{COMMIT}") == first
    for path in cached.iterdir():
        path.unlink()
    assert HubInputs(registry)._ref("hf://me/tiny@main", "here") == first.ref


def test_the_folder_in_the_cache_may_be_named_too(cached: Path) -> None:
    registry = Registry.open()
    by_folder = import_model(registry, cached)
    assert by_folder.name == "tiny"
    by_name = import_model(registry, "hf://me/tiny")
    assert _payload(by_folder) == _payload(by_name)


def _payload(artifact: Artifact) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in artifact.manifest.files}
