"""Uploading to a hub: what is sent, and what is said when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_checkpoints import checkpoint

from bc2.registry import Registry

Bc2 = Callable[..., Any]

COMMIT = "https://hub.example/me/tiny/commit/0123"


class Hub:
    """What huggingface_hub's client is asked; no hub can be reached from where this is tested."""

    def __init__(self, fails: str | None = None):
        self.fails = fails
        self.made: list[tuple[str, bool]] = []
        self.files: set[str] = set()

    def _answer(self, what: str) -> None:
        if self.fails == what:
            raise OSError("401 Client Error: Unauthorized\nfor url")

    def whoami(self) -> dict[str, str]:
        self._answer("whoami")
        return {"name": "me"}

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self._answer("create_repo")
        self.made.append((repo, private))

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, ignore_patterns: list[str], commit_message: str
    ) -> SimpleNamespace:
        self._answer("upload_folder")
        assert repo_id == "me/tiny"
        assert "export/made-safetensors" in commit_message
        names = {path.name for path in folder_path.iterdir()}
        self.files = names - set(ignore_patterns)
        return SimpleNamespace(commit_url=COMMIT)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], Hub]:
    def make(fails: str | None = None) -> Hub:
        made = Hub(fails)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: made)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        return made

    return make


def convert(bc2: Bc2, *options: str) -> Any:
    checkpoint(Registry.open())
    return bc2("convert", "made", "--to", "safetensors", "--push", "hf://me/tiny", *options)


def test_the_files_and_the_card_are_sent(home: Path, bc2: Bc2, hub: Callable[..., Hub]) -> None:
    there = hub()
    done = convert(bc2)
    assert done.code == 0, done.err
    assert COMMIT in done.err
    assert there.made == [("me/tiny", True)]
    assert {"model.safetensors", "README.md", "proof.json", "model.json"} <= there.files
    assert "manifest.json" not in there.files


@pytest.mark.parametrize("fails", ["whoami", "create_repo", "upload_folder"])
def test_a_hub_that_refuses(home: Path, bc2: Bc2, hub: Callable[..., Hub], fails: str) -> None:
    hub(fails)
    done = convert(bc2)
    assert done.code == 1
    assert "cannot upload to me/tiny: 401 Client Error: Unauthorized" in done.err
    assert "HF_TOKEN" in done.err
    kept = Registry.open().list("export")
    # What was made before the hub refused is kept, and nothing is made for a hub that knows nobody.
    assert len(kept) == (0 if fails == "whoami" else 1)
    assert ("stays registered" in done.err) is bool(kept)


@pytest.mark.parametrize("target", ["me/tiny", "hf://tiny", "hf://me/tiny/x", "hf://"])
def test_a_wrong_name(home: Path, bc2: Bc2, target: str) -> None:
    checkpoint(Registry.open())
    done = bc2("convert", "made", "--to", "safetensors", "--push", target)
    assert done.code == 2
    assert "hf://OWNER/NAME" in done.err
    assert Registry.open().list("export") == []


def test_a_hub_that_is_switched_off(home: Path, bc2: Bc2, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = convert(bc2)
    assert done.code == 2
    assert "HF_HUB_OFFLINE is set" in done.err
