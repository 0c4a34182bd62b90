"""Releases from the hub: its cache, archives that are read as files, and a hub out of reach."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import huggingface_hub.constants as constants
import made_releases
import pytest

from bc2.errors import DataError
from bc2.harness import hub_files
from bc2.harness.hub_files import hub_snapshot
from bc2.harness.release import SOURCES, open_release
from bc2.harness.releases.source import Hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and none of bc2's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("BC2_CACHE", str(tmp_path / "bc2"))
    monkeypatch.delenv("BC2_BENCH_DATA", raising=False)
    return tmp_path / "hub"


def cached(hub: Path, repo: str) -> Path:
    """A snapshot's folder as the hub's library lays it out."""
    folder = hub / f"datasets--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def blob(snapshot: Path, name: str, data: bytes) -> None:
    """A file of a snapshot: a link, as on disk."""
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / name.replace("/", "_")).write_bytes(data)
    path = snapshot / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(blobs / name.replace("/", "_"))


def test_cmmlu_is_read_from_the_archive_of_the_hub(hub_cache: Path, tmp_path: Path) -> None:
    made_releases.write_cmmlu_zip(tmp_path / "made.zip")
    data = (tmp_path / "made.zip").read_bytes()
    blob(cached(hub_cache, "haonan-li/cmmlu"), "cmmlu_v1_0_1.zip", data)
    release = open_release("cmmlu", None)
    assert release.origin == f"hub haonan-li/cmmlu at {COMMIT}"
    assert len(release.datasets) == 67
    assert [(file.name, file.size) for file in release.files] == [("cmmlu_v1_0_1.zip", len(data))]
    made_releases.write_releases(tmp_path / "given", ["cmmlu"])
    assert open_release("cmmlu", tmp_path / "given").digest == release.digest


def test_files_with_general_names_are_known_by_the_hubs_name(hub_cache: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    snapshot = cached(hub_cache, "openai/gsm8k")
    rows = pa.Table.from_pylist([{"question": "1 + 1?", "answer": "2\n#### 2"}])
    for split in ("train", "test"):
        (snapshot / "main").mkdir(exist_ok=True)
        pq.write_table(rows, snapshot / f"main/{split}-00000-of-00001.parquet")
    assert open_release("gsm8k", None).datasets["openai/gsm8k", "main"] == {
        split: [{"question": "1 + 1?", "answer": "2\n#### 2"}] for split in ("train", "test")
    }


@pytest.mark.parametrize("source", SOURCES)
def test_without_a_hub_it_is_told_at_once(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_release(source, None)
    assert time.monotonic() - began < 2
    assert caught.value.exit_code == 3
    hub = SOURCES[source].hub
    if hub is None:
        assert "on no hub" in caught.value.what
    else:
        assert "HF_HUB_OFFLINE is set" in caught.value.what
        assert caught.value.where == f"https://huggingface.co/datasets/{hub.repo}"
    for part in (SOURCES[source].expected, "--data DIR", "BC2_BENCH_DATA"):
        assert part in str(caught.value.todo)


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_files, "_ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(DataError, match="timed out"):
            hub_snapshot(SOURCES["cmmlu"], Hub("haonan-li/cmmlu", ("cmmlu_v1_0_1.zip",)), ())
    assert time.monotonic() - began < 5


def test_only_what_is_needed_is_fetched(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def fetch(repo: str, **how: Any) -> str:
        asked.update(how, repo=repo)
        return str(hub_cache / "snapshots" / COMMIT)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **how: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    source = SOURCES["mmlu"]
    assert source.hub is not None
    assert hub_snapshot(source, source.hub, ["anatomy"]).name == COMMIT
    assert (asked["repo"], asked["repo_type"]) == ("cais/mmlu", "dataset")
    assert asked["allow_patterns"] == ["anatomy/dev-*.parquet", "anatomy/test-*.parquet"]
    assert "fetching MMLU from https://huggingface.co/datasets/cais/mmlu" in capsys.readouterr().err


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's API as a download of one file needs."""

    file = b""
    asked: ClassVar[list[str]] = []

    def _answer(self, body: bytes, **headers: str) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        entry = {
            "type": "file",
            "path": "cmmlu_v1_0_1.zip",
            "size": len(self.file),
            "oid": "1" * 40,
        }
        if "/tree/" in self.path:
            self._answer(json.dumps([entry, {**entry, "path": "cmmlu.py"}]).encode())
        elif "/api/" in self.path:
            facts = {"id": "haonan-li/cmmlu", "sha": COMMIT, "siblings": [], "private": False}
            self._answer(json.dumps(facts).encode())
        else:
            self._answer(self.file, ETag='"' + "1" * 40 + '"', X_Repo_Commit=COMMIT)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None:
        pass


def test_an_archive_is_downloaded_once(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_releases.write_cmmlu_zip(tmp_path / "made.zip")
    monkeypatch.setattr(FakeHub, "file", (tmp_path / "made.zip").read_bytes())
    monkeypatch.setattr(FakeHub, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )  # fmt: skip
    try:
        release = open_release("cmmlu", None, subsets=["anatomy"])
        assert release.origin == f"hub haonan-li/cmmlu at {COMMIT}"
        assert list(release.datasets) == [("haonan-li/cmmlu", "anatomy")]
        assert not any("cmmlu.py" in path for path in FakeHub.asked)  # no script is even fetched
        asked = len(FakeHub.asked)
        assert open_release("cmmlu", None).digest
        assert len(FakeHub.asked) == asked
    finally:
        server.shutdown()
