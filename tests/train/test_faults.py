"""What can go wrong in a run nobody watches, and the state each leaves behind.

Each fault is named with step and samples, nothing that was saved is lost, and the same
command goes on and ends in the bits of the run that nothing happened to.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bc2.data import shards
from bc2.errors import DataError, ResourceError
from bc2.registry import Registry
from bc2.train.engines.local import LocalEngine
from bc2.train.log_rows import METRICS, TIMING


def timing(*events: str) -> list[dict[str, Any]]:
    """Rows of timing.jsonl in the working directory's home: every line must be one."""
    (folder,) = Registry.open().runs.iterdir()
    rows = [json.loads(line) for line in (folder / TIMING).read_bytes().splitlines()]
    return [row for row in rows if row["event"] in events]


def attempts() -> list[tuple[str, int]]:
    return [(row["event"], row["step"]) for row in timing("start", "resume")]


def saved() -> list[int]:
    """Steps of the unfinished checkpoints; each is what was published."""
    registry = Registry.open()
    checkpoints = registry.list("checkpoint")
    for artifact in checkpoints:
        registry.verify(artifact)
    return sorted(a.position.step for a in checkpoints if a.position and not a.finished)


def train_shards() -> list[Path]:
    tokens = Registry.open().newest("tokens")
    return sorted(tokens.path.glob("train/*/*.bin"))


# -- data


def truncate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    kept = {path: path.read_bytes() for path in train_shards()}
    for path in kept:
        os.truncate(path, 10)
    return lambda: [path.write_bytes(data) for path, data in kept.items()] and None


def vanish(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    # An open file lives on when its name goes: let few be open.
    monkeypatch.setattr(shards, "_OPEN", 0)
    gone = [(path, path.rename(path.with_suffix(".gone"))) for path in train_shards()]
    return lambda: [aside.rename(path) for path, aside in gone] and None


def fail_to_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    plain = os.preadv
    monkeypatch.setattr(shards.os, "preadv", broken)
    return lambda: monkeypatch.setattr(shards.os, "preadv", plain)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (truncate, "the shard ends early: wanted 130 bytes"),
        (vanish, "the shard is gone"),
        (fail_to_read, "cannot read the shard: input/output error"),
    ],
)
def test_data_that_cannot_be_read(
    train, straight, at_sample, monkeypatch, capsys, fault, said
) -> None:
    repair: list[Callable[[], None]] = []
    monkeypatch.setattr(shards, "_OPEN", 0 if fault is vanish else 256)
    at_sample({16: lambda: repair.append(fault(monkeypatch))})
    with pytest.raises(DataError) as caught:
        train()
    assert caught.value.exit_code == 3
    assert caught.value.what.startswith(said)
    assert Path(str(caught.value.where)) in train_shards() or fault is vanish
    (row,) = timing("fail")
    step, (first, last) = row["step"], row["samples"]
    # happened in step 3; batches that were read ahead are still trained on
    assert 4 <= step <= 7
    assert (first, last) == (8 * (step - 1), 8 * step - 1)
    assert f"at step {step}, samples {first} to {last}" in caught.value.what
    assert said in row["what"]
    assert saved()[-1] == row["saved"] == step - 1
    assert f"step {step - 1} is saved; go on from there with: bc2" in capsys.readouterr().err
    repair[0]()
    assert train().digest == straight().digest
    assert attempts() == [("start", 0), ("resume", step - 1)]


def test_held_out_data_that_cannot_be_read(train, straight, at_sample) -> None:
    """In the evaluation after step 8, which is made when the run goes on."""
    tokens = Registry.open().newest("tokens")
    kept = {path: path.read_bytes() for path in tokens.path.glob("heldout/*/*.bin")}
    at_sample({40: lambda: [os.truncate(path, 10) for path in kept]})
    with pytest.raises(DataError, match="at the evaluation after step 8"):
        train()
    assert saved() == [4, 8]
    for path, data in kept.items():
        path.write_bytes(data)
    assert train().digest == straight().digest
    assert attempts() == [("start", 0), ("resume", 8)]


# -- what fails in the middle of a step


def fail() -> None:
    raise RuntimeError("a defect")


def test_an_error_in_an_update_saves_nothing(train, straight, monkeypatch) -> None:
    """Some weights are new and some old: such a state must not be gone on from."""
    plain, made = LocalEngine.update, []

    def update(self: LocalEngine, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        made.append(1)
        if len(made) == 6:
            fail()

    monkeypatch.setattr(LocalEngine, "update", update)
    with pytest.raises(RuntimeError, match="a defect"):
        train()
    assert saved() == [4]
    assert timing("fail")[0]["saved"] == 4
    assert train().digest == straight().digest
    assert attempts() == [("start", 0), ("resume", 4)]


# -- full disks


@pytest.fixture
def disk(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small file system with the home on it."""
    place = small / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.copytree(small / "home", place / "home")
        monkeypatch.setenv("BC2_HOME", str(place / "home"))
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, *room_for: str) -> None:
    """Fill a disk, but let some logs grow by 64 KiB."""
    for name in room_for:
        (log,) = disk.glob(f"home/runs/*/{name}")
        size = ["--keep-size", "--offset", "0", "--length", str(1 << 16)]
        subprocess.run(["fallocate", *size, str(log)], check=True)
    with (disk / "filler").open("wb", 0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))
    with pytest.raises(OSError, match="No space"):
        (disk / "more").write_bytes(bytes(4096))


@pytest.mark.parametrize(("log", "other"), [(METRICS, TIMING), (TIMING, METRICS)])
def test_a_full_disk_under_a_log(train, straight, at_sample, disk, log, other) -> None:
    long = ["pretrain.length=60 steps", "pretrain.checkpoint_every=30 steps"]
    at_sample({8 * 32: lambda: fill(disk, other)})
    with pytest.raises(ResourceError, match=f"disk full while writing {log}, at .*step") as caught:
        train(*long)
    assert caught.value.exit_code == 6
    (folder,) = (disk / "home" / "runs").iterdir()
    assert caught.value.where == str(folder / log)
    for name in (METRICS, TIMING):
        assert (folder / name).read_bytes().endswith(b"}\n")
    (disk / "filler").unlink()
    assert saved() == [30]
    assert train(*long).digest == straight(*long).digest
    assert attempts() == [("start", 0), ("resume", 30)]


def test_a_full_disk_under_a_checkpoint(train, straight, at_sample, disk) -> None:
    at_sample({48: lambda: fill(disk, METRICS, TIMING)})
    with pytest.raises(ResourceError, match=r"disk full while .*, saving step 8") as caught:
        train()
    assert caught.value.exit_code == 6
    (row,) = timing("fail")
    assert "saving step 8" in row["what"]
    assert row["saved"] == 4
    assert list((disk / "home" / "staging").iterdir()) == []
    (disk / "filler").unlink()
    assert saved() == [4]
    assert train().digest == straight().digest
    assert attempts() == [("start", 0), ("resume", 4)]
