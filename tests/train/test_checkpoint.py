"""What a save knows of its files: each is read back by at most one rank, if by any."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from bc2.errors import Interrupted, RunFailed
from bc2.model.model_config import ModelConfig
from bc2.parallel import file_check
from bc2.parallel.state import HeldTensors
from bc2.registry import Artifact, Draft, Registry, payload
from bc2.train import checkpoint as checkpoints
from bc2.train.snapshot import ModelState, Snapshot, TrainerState


def test_a_save_alone_reads_nothing_back(train, monkeypatch) -> None:
    read: list[str] = []

    def noted(path: Path, seen: object = None) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(payload, "sha256_file", noted)
    monkeypatch.setattr(file_check, "sha256_file", noted)
    artifact = train()
    assert read
    assert not [name for name in read if name.endswith(".safetensors")]
    monkeypatch.undo()
    Registry.open().verify(artifact)


@pytest.mark.parametrize("keep", [1, 2])
def test_as_many_stay_as_are_kept_and_never_none(train, monkeypatch, keep: int) -> None:
    seen: list[list[str]] = []
    remove = Registry.remove

    def noted(registry: Registry, artifact: Artifact) -> None:
        remove(registry, artifact)
        left = registry.list("checkpoint")
        for one in left:
            registry.verify(one)
        seen.append([one.title for one in left])

    monkeypatch.setattr(Registry, "remove", noted)
    finished = train(f"pretrain.keep_checkpoints={keep}", "pretrain.checkpoint_every=2 steps")
    left = Registry.open().list("checkpoint")
    assert len(left) == keep
    assert finished in left
    assert len(seen) == 6 - keep
    assert all(len(titles) == keep for titles in seen)


def test_what_a_rollback_goes_back_to_stays_until_the_next(train, at_sample, tmp_path) -> None:
    """Saved off schedule by a signal: two stay, and one when the run is finished."""
    keep = "pretrain.keep_checkpoints=1"
    at_sample({6 * 8 + 2: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Interrupted):
        train(keep)
    registry = Registry.open()
    steps = {one.position.step for one in registry.list("checkpoint") if one.position}
    assert 4 in steps
    assert len(steps) == 2
    finished = train(keep)
    assert registry.list("checkpoint") == [finished]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system at /dev/shm")
    with TemporaryDirectory(prefix="bc2-test-", dir=shared) as folder:
        yield Path(folder)


@pytest.mark.parametrize(
    "place", ["staging", "artifacts/checkpoint", "work", "runs", "artifacts/checkpoint/small"]
)
def test_a_part_of_the_home_on_another_disk(train, straight, other_disk, place: str) -> None:
    link = Registry.open().home / place
    if link.is_dir():
        shutil.copytree(link, other_disk, dirs_exist_ok=True)
        shutil.rmtree(link)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(other_disk)
    assert train().digest == straight().digest


def test_what_cannot_be_published_is_said_before_the_first_step(train, tmp_path) -> None:
    home = Registry.open().home
    link = home / "artifacts" / "checkpoint"
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(RunFailed, match="nothing is there") as caught:
        train()
    assert caught.value.where == str(link)
    assert not list(home.glob("runs/*/metrics.jsonl"))


def saver_that(
    write: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> checkpoints.Saver:
    """A saver that calls `write` in place of its own writing."""
    monkeypatch.setattr(checkpoints.Saver, "_write", write)
    model = ModelConfig(
        vocab_size=8, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=1,
        context_length=4,
    )  # fmt: skip
    draft = Draft(kind="checkpoint", name="a", key="0" * 64)
    tokenizer = folder / "tokenizer.model"
    return checkpoints.Saver(
        Registry.open(folder), draft, {"": model}, tokenizer, sequence_length=4, keep=0
    )


def test_the_memory_of_a_save_is_given_back_when_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    saver = saver_that(lambda *_: seen.append("written"), tmp_path, monkeypatch)
    saver.save(
        Snapshot(
            TrainerState(), {"": ModelState(HeldTensors(), HeldTensors())}, b"", torch.empty(0),
            release=lambda: seen.append("released"),
        )
    )  # fmt: skip
    saver.wait()
    assert seen == ["written", "released"]


def test_the_memory_of_a_save_that_failed_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[bool] = []

    def write(*_: Any) -> None:
        raise RunFailed("a full disk")

    saver = saver_that(write, tmp_path, monkeypatch)
    saver.save(
        Snapshot(
            TrainerState(), {"": ModelState(HeldTensors(), HeldTensors())}, b"", torch.empty(0),
            release=lambda: released.append(True),
        )
    )  # fmt: skip
    with pytest.raises(RunFailed):
        saver.wait()
    assert not released
