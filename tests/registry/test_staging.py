from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from bc2 import files
from bc2.registry import staging


def test_a_sweep_between_mkdir_and_flock_is_survived(tmp_path: Path, monkeypatch) -> None:
    real = files.lock_directory
    swept: list[Path] = []

    def lock(path: Path, **options: bool):
        if not swept:
            # The window: the directory is there, and its maker has no lock on it yet.
            swept.extend(staging.sweep(path.parent))
        return real(path, **options)

    monkeypatch.setattr(staging.files, "lock_directory", lock)
    with monkeypatch.context(), ExitStack() as stack:
        # `sweep` itself locks through the same name: let it have the real one.
        monkeypatch.setattr(staging, "_if_dead", lambda path, act: _real_if_dead(real, path, act))
        path = staging.create(tmp_path, stack)
        assert len(swept) == 1
        assert path not in swept
        assert list(tmp_path.iterdir()) == [path]
        with real(path) as held:
            assert not held


def _real_if_dead(lock, path: Path, act) -> bool:
    with lock(path) as held:
        if held:
            act(path)
        return held


def test_a_lock_is_on_what_the_name_means_now(tmp_path: Path) -> None:
    """Whoever waits for a directory that is moved away must not end up with the old one."""
    place = tmp_path / "place"
    place.mkdir()
    waiting, inodes = threading.Event(), []

    def wait() -> None:
        waiting.set()
        with files.lock_directory(place, wait=True):
            inodes.append(place.stat().st_ino)

    with files.lock_directory(place) as held:
        assert held
        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        os.rename(place, tmp_path / "old")
        place.mkdir()
    thread.join(timeout=10)
    assert inodes == [place.stat().st_ino]
    with files.lock_directory(place) as held:
        assert held
    shutil.rmtree(place)
    with pytest.raises(FileNotFoundError), files.lock_directory(place):
        pass


def test_shared_locks_go_together_and_exclusive_ones_do_not(tmp_path: Path) -> None:
    with files.lock_directory(tmp_path, shared=True) as one:
        with files.lock_directory(tmp_path, shared=True) as two:
            assert one
            assert two
        with files.lock_directory(tmp_path) as three:
            assert not three
    with files.lock_directory(tmp_path) as four:
        assert four
