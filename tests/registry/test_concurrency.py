"""Many processes at once, some of them killed: nothing acknowledged is lost, nothing half there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bc2.registry import Registry
from bc2.registry.gc import carry_out, plan
from bc2.registry.places import in_place

WORKER = Path(__file__).with_name("worker.py")


def start(home: Path, prefix: str, count: int, *parents: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(home), prefix, str(count), *parents],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_some(home: Path, total: int, rng: random.Random) -> tuple[set[str], list[str]]:
    """Start `total` workers, a few at a time, and kill each at a random moment."""
    acknowledged: set[str] = set()
    complaints: list[str] = []
    for number in range(total):
        worker = start(home, f"victim{number}", 1000)
        assert worker.stdout is not None
        # It has begun to publish when it acknowledges its first; then wait at random.
        first = worker.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        worker.send_signal(signal.SIGKILL)
        out, err = worker.communicate()
        assert worker.returncode == -signal.SIGKILL
        # A line cut by the kill was not acknowledged.
        lines = (first + out).split("\n")[:-1]
        acknowledged.update(lines)
        complaints.append(err)
    return acknowledged, complaints


def check_house(registry: Registry, acknowledged: set[str]) -> None:
    listed = {artifact.digest: artifact for artifact in registry.list()}
    assert acknowledged <= set(listed)
    for artifact in listed.values():
        registry.verify(artifact)
    before = [*registry.list()]
    registry.sweep()
    assert list(registry.staging.iterdir()) == []
    for folder in in_place(registry.home):
        # What a kill left out of the index is complete all the same.
        registry.verify(next(iter(_in(folder))))
    registry.rebuild()
    after = {artifact.digest for artifact in registry.list()}
    assert {artifact.digest for artifact in before} <= after
    assert len(after) == len(list(in_place(registry.home)))


def _in(folder: Path):
    from bc2.registry import Artifact
    from bc2.registry.manifest import read

    yield Artifact.of(read(folder), folder)


def soak(home: Path, publishers: int, each: int, victims: int, seed: int) -> None:
    """`publishers` finish while `victims` are killed, in a home that is not there yet."""
    workers = [start(home, f"p{number}", each) for number in range(publishers)]
    acknowledged, complaints = kill_some(home, victims, random.Random(seed))
    for worker in workers:
        out, err = worker.communicate(timeout=500)
        complaints.append(err)
        assert worker.returncode == 0, err
        assert len(out.splitlines()) == each
        acknowledged.update(out.splitlines())
    assert "locked" not in "".join(complaints)
    assert "".join(complaints) == ""
    assert len(acknowledged) >= publishers * each + victims
    check_house(Registry.open(home), acknowledged)


def test_publishers_while_others_are_killed(tmp_path: Path) -> None:
    soak(tmp_path / "home", publishers=3, each=12, victims=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_eight_publish_fifty_while_others_are_killed(tmp_path: Path, seed: int) -> None:
    soak(tmp_path / "home", publishers=8, each=50, victims=25, seed=seed)


def test_eight_make_the_same_home_at_once(tmp_path: Path) -> None:
    workers = [start(tmp_path / "home", "same", 3) for _ in range(8)]
    said = set()
    for worker in workers:
        out, err = worker.communicate(timeout=200)
        assert worker.returncode == 0, err
        assert err == ""
        said.add(out)
    assert len(said) == 1, "the same work gave different artifacts"
    registry = Registry.open(tmp_path / "home")
    assert len(registry.list()) == 3
    check_house(registry, set(said.pop().split()))


def collect(home: Path, until: threading.Event) -> tuple[int, list[str]]:
    """Run gc --yes --keep-last 2 and rebuild over and over."""
    registry = Registry.open(home)
    removed, rounds = 0, []
    while not until.is_set():
        done = carry_out(plan(registry, keep_last=2))
        removed += len(done.removed)
        rounds += [why for _, why in done.kept]
        broken = registry.rebuild().broken
        assert broken == []
    return removed, rounds


def gc_beside(home: Path, publishers: int, each: int, victims: int) -> None:
    registry = Registry.open(home)
    parent = _seed(registry)
    until = threading.Event()
    result: list[object] = []

    def run() -> None:
        try:
            result.append(collect(home, until))
        except BaseException as error:
            result.append(error)

    collector = threading.Thread(target=run)
    workers = [start(home, f"p{number}", each, parent) for number in range(publishers)]
    collector.start()
    acknowledged, complaints = kill_some(home, victims, random.Random(1))
    for worker in workers:
        out, err = worker.communicate(timeout=500)
        assert worker.returncode == 0, err
        assert err == ""
        acknowledged.update(out.split())
    until.set()
    collector.join()
    assert "".join(complaints) == ""
    assert isinstance(result[0], tuple), result[0]
    assert result[0][0] > 0, "the collector removed nothing: this tested nothing"
    left = {artifact.digest: artifact for artifact in registry.list()}
    assert parent in left
    for number in range(publishers):
        steps = {a.position.step for a in left.values() if a.name == f"p{number}" and a.position}
        tagged = set(range(0, each, 3))
        assert {each - 1, each - 2} | tagged <= steps, "gc took what was still needed"
    check_house(registry, {parent})


def _seed(registry: Registry) -> str:
    from bc2.registry import Draft

    with registry.stage(Draft("tokens", "parent", "4" * 64)) as staged:
        (staged.path / "x").write_bytes(b"x")
        return staged.publish().digest


def test_gc_and_rebuild_beside_publishers(tmp_path: Path) -> None:
    gc_beside(tmp_path / "home", publishers=2, each=15, victims=3)


@pytest.mark.slow
def test_gc_and_rebuild_beside_many_publishers(tmp_path: Path) -> None:
    gc_beside(tmp_path / "home", publishers=8, each=50, victims=20)
