"""Models of the hub, without the hub: its answers are made, its cache is real."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest

from bc2.convert.importing.hub import HubModel, _patterns
from bc2.convert.importing.model_folder import ModelFolder
from bc2.errors import DataError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def put(cache: Path, name: str, data: bytes) -> Path:
    """A file of a model in the cache, as the hub's library lays it out."""
    repo = cache / "models--me--tiny"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", repo / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs" / f"hash-{name}").write_bytes(data)
    os.symlink(f"../../blobs/hash-{name}", snapshot / name)
    return snapshot


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("hf://me/tiny", "me/tiny", "main"),
        ("hf://me/tiny@v1.0", "me/tiny", "v1.0"),
        (f"hf://Qwen/Qwen2.5-7B@{COMMIT}", "Qwen/Qwen2.5-7B", COMMIT),
        ("hf://me/tiny@refs/pr/3", "me/tiny", "refs/pr/3"),
    ],
)
def test_names(source: str, repo: str, revision: str) -> None:
    assert HubModel.parse(source) == HubModel(repo, revision)


@pytest.mark.parametrize("source", ["hf://", "hf://tiny", "hf://a/b/c", "hf://../b", "hf://a/b@"])
def test_what_is_no_name(source: str) -> None:
    with pytest.raises(UsageError, match="names no model of the hub"):
        HubModel.parse(source)


def test_blobs_that_lie_elsewhere_are_no_cache(cache: Path) -> None:
    snapshot = put(cache, "config.json", b"{}")
    blobs = cache / "models--me--tiny" / "blobs"
    blobs.rename(cache / "elsewhere")
    blobs.symlink_to(cache / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        ModelFolder(snapshot).bytes("config.json")


def test_offline_the_cache_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = put(cache, "config.json", b"{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert HubModel("me/tiny", "main").fetch() == (snapshot, COMMIT)
    assert ModelFolder(snapshot).bytes("config.json") == b"{}"


def test_out_of_reach_the_cache_is_taken_and_it_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = put(cache, "config.json", b"{}")

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", gone)
    assert HubModel("me/tiny", "main").fetch() == (snapshot, COMMIT)
    assert "no route" in capsys.readouterr().err
    assert HubModel("me/tiny", COMMIT).fetch() == (snapshot, COMMIT)
    assert capsys.readouterr().err == ""  # a commit cannot move
    with pytest.raises(DataError, match=r"not in the hub's cache .* no route") as caught:
        HubModel("me/other", "main").fetch()
    assert caught.value.where == "hf://me/other@main"


def test_no_code_and_one_kind_of_weights_are_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    names = [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "pytorch_model.bin", "modeling_evil.py", "original/consolidated.00.pth",
    ]  # fmt: skip
    found = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=n) for n in names])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: found)

    def fetch(repo: str, **how: Any) -> str:
        asked.update(how, repo=repo)
        return str(put(cache, "config.json", b"{}"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    _, commit = HubModel("me/tiny", "main").fetch()
    assert commit == asked["revision"] == COMMIT
    patterns = asked["allow_patterns"]
    assert [one for one in patterns if "model" in one and not one.startswith("*")] == [
        "tokenizer.model", *names[1:3],
    ]  # fmt: skip
    assert not [one for one in patterns if one.endswith((".py", ".pth", ".bin"))]
    assert _patterns(["pytorch_model.bin", "x.bin"])[-1] == "pytorch_model.bin"


def test_links_that_leave_the_cache_are_refused(cache: Path) -> None:
    snapshot = put(cache, "config.json", b"{}")
    os.symlink("/etc/passwd", snapshot / "tokenizer.json")
    folder = ModelFolder(snapshot)
    with pytest.raises(DataError, match=r"tokenizer\.json is a link"):
        folder.bytes("tokenizer.json")
