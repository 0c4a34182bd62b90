"""Homes that cannot be written: read-only mounts, and those of another user."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bc2.errors import RunFailed
from bc2.registry import Registry, queries, snapshot

COMMANDS = Path(__file__).with_name("commands_in_turn.py")

Ended = tuple[int, str, str]


def _run(prefix: list[str], home: Path, *commands: list[str], **more: str) -> list[Ended]:
    done = subprocess.run(
        [*prefix, sys.executable, str(COMMANDS), json.dumps(commands)],
        env={**os.environ, "BC2_HOME": str(home), **more}, cwd="/",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def _read_only(home: Path) -> list[str]:
    """What starts a command that sees `home` mounted read-only."""
    mount = f'mount --bind "{home}" "{home}" && mount -o remount,ro,bind "{home}" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("needs the right to mount: run as root")
    return prefix


def _another_user(_: Path) -> list[str]:
    """What starts a command as another user, who may read all that root may, and write nothing."""
    rights = "-all,+dac_read_search"
    prefix = [
        "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups",
        f"--inh-caps={rights}", f"--ambient-caps={rights}",
    ]  # fmt: skip
    if shutil.which("setpriv") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("needs the right to be another user: run as root")
    return prefix


Way = Callable[[Path], list[str]]


@pytest.fixture(params=[_read_only, _another_user])
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


def test_reading_commands_work_on_a_home_that_cannot_be_written(way, registry, publish) -> None:
    corpus = publish("corpus", "tiny")
    run = publish("checkpoint", "tiny", step=3, parents=(corpus,))
    registry.tag(run, "best")
    before = _everything(registry.home)
    commands = [
        ["registry", "list", "--quiet"],
        ["registry", "show", "tiny:best", "--quiet"],
        ["registry", "lineage", "checkpoint/tiny", "--quiet"],
        ["registry", "verify", "--quiet"],
        ["registry", "gc"],
    ]
    listed, shown, traced, verified, cleaned = _run(way(registry.home), registry.home, *commands)
    assert listed == (0, f"{run.ref}\n{corpus.ref}\n", "")
    assert shown == (0, f"{run.ref}\n", "")
    assert traced == (0, f"{run.ref}\n{corpus.ref}\n", "")
    assert verified == (0, f"{run.ref}\n{corpus.ref}\n", "")
    assert cleaned == (0, "nothing to remove\n", "")
    assert _everything(registry.home) == before


def test_a_checkpoint_is_used_where_the_home_cannot_be_written(small, tmp_path) -> None:
    from bc2.cli import main

    with pytest.raises(SystemExit) as end:
        main(["pretrain", "small.toml", "--set", "pretrain.length='5 steps'", "--quiet"])
    assert end.value.code == 0
    home, recipe = tmp_path / "home", str(tmp_path / "small.toml")
    page = tmp_path / "out"
    page.mkdir(mode=0o777)
    page.chmod(0o777)
    reading = [
        ["generate", "--max-new-tokens", "1", "import"],
        ["watch", "--once"],
        ["report", "--out", str(page / "page.html")],
        ["data", "report", "--json"],
        ["pretrain", recipe, "--set", "pretrain.length='5 steps'", "--quiet"],
        ["bench", "--list"],
        ["eval", "--list", "--quiet"],
    ]
    writing = [
        ["pretrain", recipe, "--set", "pretrain.length='6 steps'"],
        ["report"],
        ["registry", "tag", "checkpoint/small", "best"],
        ["registry", "gc", "--yes"],
        ["registry", "rebuild"],
        ["verify", "resume", recipe],
    ]
    ended = _run(_read_only(home), home, *reading, *writing, XDG_CACHE_HOME=str(page))
    for command, (code, _, err) in zip(reading, ended, strict=False):
        assert code == 0, (command, err)
    assert (page / "page.html").exists()
    for command, (code, out, err) in zip(writing, ended[len(reading) :], strict=True):
        assert code == 1, (command, err)
        assert not out
        assert "cannot be written" in err, (command, err)
        assert str(home) in err, (command, err)
        assert "to do: " in err, (command, err)


def _everything(home: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in home.rglob("*")}


def test_a_lost_index_is_read_from_the_manifests(registry, publish) -> None:
    run = publish("checkpoint", "tiny", step=3)
    registry.tag(run, "best")
    registry.index_file.unlink()
    (ended,) = _run(
        _read_only(registry.home), registry.home, ["registry", "show", "tiny:best", "--quiet"]
    )
    told = "the index is missing and cannot be made: 1 manifests were read instead\n"
    assert ended == (0, f"{run.ref}\n", told)


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the home is taken for one that cannot be written, from now on."""
    state = [True]
    monkeypatch.setattr(
        snapshot, "why_not_writable", lambda _: "permission denied" if state[0] else None
    )
    return state


def test_what_is_only_in_the_wal_is_seen(registry, publish, locked) -> None:
    locked[0] = False
    first = publish(seed=1)
    # A reader that stays keeps the writer from moving the WAL into the file.
    with closing(sqlite3.connect(registry.index_file)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM artifacts").fetchall()
        second = publish(seed=2)
        assert registry.index_file.with_name("index.sqlite-wal").stat().st_size
        locked[0] = True
        other = Registry.open(registry.home)
        assert {found.digest for found in other.list()} == {first.digest, second.digest}


def test_what_others_publish_meanwhile_is_seen(registry, publish, locked) -> None:
    locked[0] = False
    first = publish(seed=1)
    locked[0] = True
    reader = Registry.open(registry.home)
    assert reader.list() == [first]
    locked[0] = False
    second = publish(seed=2)
    locked[0] = True
    assert set(reader.list()) == {first, second}
    locked[0] = False
    reader.tag(first, "best")
    assert registry.resolve("tiny:best").digest == first.digest


def test_a_copy_cannot_be_written_to(registry, publish, locked) -> None:
    locked[0] = False
    artifact = publish()
    locked[0] = True
    reader = Registry.open(registry.home)
    with pytest.raises(RunFailed, match="cannot be written: permission denied") as caught:
        reader.tag(artifact, "best")
    assert str(registry.home) in str(caught.value)
    assert reader.get(artifact.digest).tags == ()


def test_an_index_of_an_earlier_bc2_is_read(registry, publish, locked) -> None:
    locked[0] = False
    artifact = publish("checkpoint", "run", step=1)
    with registry.index.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE artifacts DROP COLUMN role")
    locked[0] = True
    assert Registry.open(registry.home).resolve("run", roles=("base",)) == artifact
    with closing(sqlite3.connect(registry.index_file)) as index:
        columns = [row[1] for row in index.execute("PRAGMA table_info(artifacts)")]
    assert "role" not in columns


def test_each_copy_is_one_state_while_a_writer_works(registry, publish, locked) -> None:
    """The writer moves a tag among artifacts: in every state exactly one has it."""
    locked[0] = False
    made = [publish(seed=seed) for seed in range(3)]
    index = registry.index
    stop = threading.Event()
    with index.writing() as connection:
        queries.set_tag(connection, "corpus", "tiny", "here", made[0].digest)

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            with index.writing() as connection:
                queries.drop_tag(connection, "corpus", "tiny", "here")
                queries.set_tag(connection, "corpus", "tiny", "here", made[turn % 3].digest)
            time.sleep(0.005)  # others get a moment, as between two that are published

    writer = threading.Thread(target=write)
    writer.start()
    try:
        locked[0] = True
        for _ in range(30):
            found = Registry.open(registry.home).list()
            assert len(found) == 3
            assert sum("here" in artifact.tags for artifact in found) == 1
    finally:
        stop.set()
        writer.join()


def test_an_index_that_never_rests_is_said(registry, publish, locked, monkeypatch) -> None:
    locked[0] = False
    publish()
    locked[0] = True
    states = iter(range(10**9))
    monkeypatch.setattr(snapshot, "TRY_S", 0.1)
    monkeypatch.setattr(snapshot, "_content", lambda _: str(next(states)).encode())
    with pytest.raises(RunFailed, match="written to all the time"):
        Registry.open(registry.home).list()


def test_without_a_place_for_the_copy(registry, publish, locked, monkeypatch) -> None:
    locked[0] = False
    publish()
    locked[0] = True

    def nowhere(**_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(snapshot.tempfile, "TemporaryDirectory", nowhere)
    with pytest.raises(RunFailed, match="No usable temporary directory") as caught:
        Registry.open(registry.home).list()
    assert "TMPDIR" in str(caught.value)
