"""The index in a real PostgreSQL: a server of the machine's own binaries, or a URL that is given.

``BC2_TEST_POSTGRESQL`` is the URL of a database that the tests may empty. Without it a server is
started where ``initdb`` and ``postgres`` are installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bc2.registry import Registry
from bc2.registry import index as ix
from bc2.registry.gc import carry_out, plan

pytest.importorskip("psycopg", reason="needs bc2[postgres]")

WORKER = Path(__file__).with_name("worker.py")


def _binaries() -> Path | None:
    """The folder of PostgreSQL's own programs; Debian keeps them out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((each for each in folders if (each / "postgres").exists()), None)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an empty database."""
    if given := os.environ.get("BC2_TEST_POSTGRESQL"):
        yield given
        return
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server: install one, or set BC2_TEST_POSTGRESQL")
    # It refuses to be run by root. A socket's path is limited to 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="bc2-pg-"))
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if not os.getuid() else {}
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    initdb = [binaries / "initdb", "-D", data, "-U", "bc2", "-A", "trust", "-N", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)
    log = (folder / "log").open("w")
    options = ["-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
    process = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/", **user
    )
    try:
        url = f"postgresql://bc2@/postgres?host={folder}"
        _await(url, process, folder / "log")
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        log.close()
        shutil.rmtree(folder)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)


@pytest.fixture
def url(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The index of this test, of which nothing is there yet."""
    import psycopg

    with psycopg.connect(server) as connection:
        for table in ("artifacts", "parents", "tags", "bc2_schema"):
            connection.execute(f"DROP TABLE IF EXISTS {table}")  # type: ignore[call-overload]
    monkeypatch.setenv("BC2_REGISTRY_URL", server)
    return server


def test_what_is_published_is_listed_tagged_and_removed(url, tmp_path, publish) -> None:
    registry = Registry.open(tmp_path / "shared")
    corpus = publish("corpus", "tiny", home=registry)
    run = publish("checkpoint", "tiny", step=300, parents=(corpus,), home=registry)
    registry.tag(run, "best")
    again = Registry.open(tmp_path / "shared")
    assert [found.digest for found in again.list()] == [run.digest, corpus.digest]
    assert again.resolve("tiny:best").digest == run.digest
    assert again.resolve("tiny@300").digest == run.digest
    assert again.resolve(run.digest[:9]).digest == run.digest
    assert again.children(corpus)[0].digest == run.digest
    assert again.find("corpus", corpus.key) == corpus
    again.untag(run, "best")
    done = carry_out(plan(again, [run]))
    assert [item.path for item in done.removed] == [run.path]
    assert again.list() == [corpus]
    assert not run.path.exists()
    assert not (tmp_path / "shared" / "index.sqlite").exists()


def test_four_publish_at_once_and_one_is_killed(url, tmp_path) -> None:
    home = tmp_path / "shared"
    workers = [_start(home, f"w{number}", 1000 if not number else 12) for number in range(4)]
    victim = workers[0]
    assert victim.stdout is not None
    said = [victim.stdout.readline() for _ in range(3)]
    victim.kill()
    told = [victim.communicate(timeout=120)] + [
        each.communicate(timeout=120) for each in workers[1:]
    ]
    assert [each.returncode for each in workers] == [-signal.SIGKILL, 0, 0, 0], told
    # A line that the kill cut was not acknowledged.
    lines = ("".join(said) + told[0][0]).split("\n")[:-1] + "".join(
        out for out, _ in told[1:]
    ).split()
    registry = Registry.open(home)
    listed = {artifact.digest: artifact for artifact in registry.list()}
    assert set(lines) <= set(listed)
    for artifact in listed.values():
        registry.verify(artifact)
    assert {a.name for a in listed.values()} == {"w0", "w1", "w2", "w3"}
    assert sum(artifact.name != "w0" for artifact in listed.values()) == 36
    registry.sweep()
    assert list(registry.staging.iterdir()) == []


def test_an_index_is_made_from_the_manifests(url, tmp_path, publish) -> None:
    home = tmp_path / "shared"
    registry = Registry.open(home)
    made = [publish(seed=seed, home=registry) for seed in range(4)]
    registry.tag(made[1], "best")
    with registry.index.writing() as connection:
        for table in (ix.artifacts, ix.parents, ix.tags):
            connection.execute(table.delete())
    assert registry.list() == []
    found = Registry.open(home).rebuild()
    assert {each.digest for each in found.adopted} == {each.digest for each in made}
    assert not found.broken
    assert Registry.open(home).resolve("tiny:best").digest == made[1].digest
    assert Registry.open(home).count() == 4


def _start(home: Path, prefix: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(home), prefix, str(count)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
