"""What a save knows of its files: each is read back by at most one rank, if by any."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bc2.parallel.mesh import Group
from bc2.registry import Registry, payload
from bc2.train import checkpoint as checkpoints


class Threads(Group):
    """Ranks that are threads."""

    def all_gather_object(self, value: Any) -> list[Any]:
        barrier, box = self.handle
        box[self.rank] = value
        barrier.wait(10)
        found = [box[rank] for rank in self.ranks]
        barrier.wait(10)
        return found


def on_ranks(count: int, act: Callable[[Group], Any]) -> list[Any]:
    handle = threading.Barrier(count), dict[int, Any]()
    ranks = [Threads(tuple(range(count)), number, handle) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(act, rank) for rank in ranks]]


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Digests of three files."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    return {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in "abc"}


def test_ranks_share_the_reading_of_what_none_wrote_alone(tmp_path, three, monkeypatch) -> None:
    read: list[str] = []
    real = checkpoints.sha256_file
    monkeypatch.setattr(checkpoints, "sha256_file", lambda p: read.append(p.name) or real(p))
    mine = [{}, {"b": three["b"]}]
    found = on_ranks(2, lambda r: checkpoints._digests_of_all(mine[r.rank], tmp_path, three, r))
    assert found == [three, three]
    assert sorted(read) == ["a", "c"]


def test_a_file_that_cannot_be_read_back_fails_on_every_rank(tmp_path, three) -> None:
    (tmp_path / "c").unlink()

    def failed(rank: Group) -> str:
        with pytest.raises(OSError, match="No such file") as caught:
            checkpoints._digests_of_all({}, tmp_path, three, rank)
        return str(caught.value)

    assert len(on_ranks(3, failed)) == 3


def test_a_save_alone_reads_nothing_back(train, monkeypatch) -> None:
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(payload, "sha256_file", noted)
    monkeypatch.setattr(checkpoints, "sha256_file", noted)
    artifact = train()
    assert read
    assert not [name for name in read if name.endswith(".safetensors")]
    monkeypatch.undo()
    Registry.open().verify(artifact)
