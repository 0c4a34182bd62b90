"""Files that ranks read together: even shares, damage anywhere, ranks that die, signals, notes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import warmed
from hypothesis import given
from hypothesis import strategies as st

from bc2.files import CHUNK
from bc2.parallel import file_check
from bc2.parallel.file_check import balanced_shares, digest_files_together, reading_cost
from bc2.parallel.mesh import Group
from bc2.registry import Artifact, Draft, Registry, stage_key

DRIVER = Path(__file__).with_name("file_check_driver.py")
OnRanks = Callable[[int, Callable[[Group], Any]], list[Any]]
Rank = subprocess.Popen[str]

#: How soon ranks must have ended after one of them died or got a signal, on a busy machine.
SOON_S = 20.0


# -- shares ---------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 1 << 34) | st.integers(0, 4096), max_size=60),
    parts=st.integers(1, 20),
)
def test_shares_are_all_files_once_and_as_even_as_files_allow(sizes: list[int], parts: int) -> None:
    named = {f"{at:03}": size for at, size in enumerate(sizes)}
    shares = balanced_shares(named, parts)
    assert len(shares) == parts
    assert sorted(name for share in shares for name in share) == sorted(named)
    assert all(share == sorted(share) for share in shares)
    costs = [sum(reading_cost(named[name]) for name in share) for share in shares]
    largest = max(map(reading_cost, sizes), default=0)
    assert max(costs) - min(costs) <= largest
    # Graham 1966: of what is given to whoever has least.
    assert max(costs) <= sum(costs) / parts + largest * (1 - 1 / parts) + 1e-3
    assert balanced_shares(named, parts) == shares


def test_shards_of_one_size_and_many_small_files_are_shared_evenly() -> None:
    sizes = {f"shard-{n:02}": 512 << 20 for n in range(32)} | {f"tiny-{n:03}": 9 for n in range(80)}
    shares = balanced_shares(sizes, 8)
    assert {sum(name.startswith("shard") for name in share) for share in shares} == {4}
    assert {sum(name.startswith("tiny") for name in share) for share in shares} == {10}


# -- digests --------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> dict[str, str]:
    """Digests of three files."""
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 1000)
    return {name: hashlib.sha256(name.encode() * 1000).hexdigest() for name in "abc"}


def test_ranks_share_the_reading(
    tmp_path: Path, three: dict[str, str], on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = file_check.sha256_file

    def noted(path: Path, seen: Any = None) -> str:
        read.append(path.name)
        return real(path, seen)

    monkeypatch.setattr(file_check, "sha256_file", noted)
    sizes = {"a": 1000, "c": 1000}
    found = on_ranks(2, lambda rank: digest_files_together(tmp_path, sizes, rank))
    assert found == 2 * [{name: three[name] for name in "ac"}]
    assert sorted(read) == ["a", "c"]


def test_a_file_that_cannot_be_read_back_fails_on_every_rank(
    tmp_path: Path, three: dict[str, str], on_ranks: OnRanks
) -> None:
    (tmp_path / "c").unlink()

    def failed(rank: Group) -> str:
        with pytest.raises(OSError, match="No such file") as caught:
            digest_files_together(tmp_path, dict.fromkeys(three, 1000), rank)
        return str(caught.value)

    assert len(on_ranks(3, failed)) == 3


# -- real ranks over gloo -------------------------------------------------------------------

SIZES = {f"train/web/shard-{n}.bin": (3 + n) * CHUNK // 2 + n for n in range(6)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with token shards of nothing in particular."""
    home = tmp_path_factory.mktemp("published") / "home"
    registry = Registry.open(home)
    with registry.stage(Draft("tokens", "web", stage_key("tokens", 1, {}, ()))) as staged:
        for name, size in SIZES.items():
            path = staged.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(hashlib.sha256(name.encode()).digest() * (size // 32 + 1))
            os.truncate(path, size)
        staged.publish()
    return home


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Path:
    shutil.copytree(published, tmp_path / "home")
    return tmp_path / "home"


def tokens_of(home: Path) -> Artifact:
    (artifact,) = Registry.open(home).list("tokens")
    return artifact


@contextmanager
def ranks(home: Path, port: int, world: int, pause: float = 0.0) -> Iterator[list[Rank]]:
    command = [sys.executable, str(DRIVER), str(home), tokens_of(home).digest, str(pause)]
    common = {
        "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    started = [
        warmed.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for each in started:
            each.kill()
            each.communicate()


def ended(home: Path, port: int, world: int = 2) -> list[dict[str, Any]]:
    """What each rank says at its end."""
    with ranks(home, port, world) as started:
        found = [rank.communicate(timeout=120) for rank in started]
    assert not [err for _, err in found if "Traceback" in err], found
    return [json.loads(out.splitlines()[-1]) for out, _ in found]


def read_by(found: list[dict[str, Any]]) -> list[str]:
    return sorted(name for rank in found for name in rank["read"])


def test_each_file_is_read_once_and_only_what_changed_is_read_again(home: Path, port: int) -> None:
    found = ended(home, port, world=3)
    assert [rank["error"] for rank in found] == [None, None, None]
    assert read_by(found) == sorted(SIZES)
    assert all(rank["read"] for rank in found)
    changed = "train/web/shard-3.bin"
    os.utime(tokens_of(home).path / changed)
    for expected in ([changed], []):
        found = ended(home, port + 1, world=2)
        assert [rank["error"] for rank in found] == [None, None]
        assert read_by(found) == expected


@pytest.mark.parametrize("owner", [0, 1])
def test_damage_in_any_share_ends_every_rank_with_the_files_name(
    home: Path, port: int, owner: int
) -> None:
    artifact = tokens_of(home)
    sizes = {name: artifact.entry(name).size for name in artifact.files()}
    damaged = balanced_shares(sizes, 2)[owner][-1]
    path = artifact.path / damaged
    found = bytearray(path.read_bytes())
    found[len(found) // 2] ^= 1
    path.write_bytes(found)
    for each in ended(home, port):
        code, what, where = each["error"]
        assert code == 5
        assert what == "a file does not match its SHA-256"
        assert where.endswith(damaged)


def test_a_missing_file_is_seen_before_anything_is_read(home: Path, port: int) -> None:
    (tokens_of(home).path / "train/web/shard-5.bin").unlink()
    found = ended(home, port)
    assert [rank["error"][:2] for rank in found] == 2 * [[5, "a file is missing"]]
    assert all(rank["error"][2].endswith("shard-5.bin") for rank in found)
    assert read_by(found) == []


def wait_for_reading(started: list[Rank]) -> None:
    for rank in started:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "reading\n"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_dies_meanwhile_ends_the_others(home: Path, port: int, lost: int) -> None:
    with ranks(home, port, 2, pause=30.0) as started:
        wait_for_reading(started)
        started[lost].kill()
        began = time.monotonic()
        out, err = started[1 - lost].communicate(timeout=60)
        assert time.monotonic() - began < SOON_S
    code, what, _ = json.loads(out.splitlines()[-1])["error"]
    assert code == 1, err
    assert f"rank {1 - lost} lost" in what


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_meanwhile_ends_the_ranks_in_order(
    home: Path, port: int, signum: signal.Signals
) -> None:
    with ranks(home, port, 2, pause=30.0) as started:
        wait_for_reading(started)
        began = time.monotonic()
        for rank in started:
            rank.send_signal(signum)
        said = [rank.communicate(timeout=60)[1] for rank in started]
        assert time.monotonic() - began < SOON_S
    assert [rank.returncode for rank in started] == 2 * [128 + signum], said
