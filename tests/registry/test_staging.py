from __future__ import annotations

import errno
import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from bc2 import files
from bc2.errors import DataError, ResourceError, RunFailed
from bc2.registry import Draft, staging
from bc2.registry.places import in_place


def test_a_sweep_between_mkdir_and_flock_is_survived(tmp_path: Path, monkeypatch) -> None:
    real, root = files.lock_directory, tmp_path / "staging"
    swept: list[Path] = []

    def lock(path: Path, **options: bool):
        if not swept:
            # The window: the directory is there, and its maker has no lock on it yet.
            swept.extend(staging.sweep(tmp_path))
        return real(path, **options)

    monkeypatch.setattr(staging.files, "lock_directory", lock)
    with monkeypatch.context(), ExitStack() as stack:
        # `sweep` itself locks through the same name: let it have the real one.
        monkeypatch.setattr(staging, "_if_dead", lambda path, act: _real_if_dead(real, path, act))
        path = staging.create(root, stack)
        assert len(swept) == 1
        assert path not in swept
        assert list(root.iterdir()) == [path]
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


def test_a_plain_home_stages_in_one_place(registry, publish) -> None:
    assert registry.staging_of("checkpoint", "new") == registry.staging
    publish()
    assert registry.staging_of("corpus", "tiny") == registry.staging
    assert staging.roots(registry.home) == [registry.staging]


ON_ANOTHER_DISK = """
disk = mount("tmpfs", top / "disk")
place = Path(os.path.normpath(registry.home / {place!r}))
place.parent.mkdir(parents=True, exist_ok=True)
target = disk if {root} else disk / "folder"
target.mkdir(exist_ok=True)
place.symlink_to(target)
registry.check_publishing("checkpoint", "a")
first, second = publish("a", step=1), publish("a", step=2)
registry.verify(first), registry.verify(second)
text = publish("text", kind="corpus")
aside = registry.staging_of("checkpoint", "a")
died = os.fork()
if died == 0:
    from contextlib import ExitStack
    from bc2.registry import staging
    staging.create(aside, ExitStack())
    os._exit(0)
os.waitpid(died, 0)
assert len(list(aside.iterdir())) == 1
swept = len(registry.sweep())
did = remove(first)
rebuilt = registry.rebuild()
say([
    str(aside.relative_to(registry.home)), swept, did,
    [len(rebuilt.artifacts), len(rebuilt.broken), len(rebuilt.adopted)],
    [str(path) for root in (registry.staging, aside) if root.is_dir() for path in root.iterdir()],
    second.path.resolve().is_relative_to(disk), os.stat(disk).st_dev != os.stat(top).st_dev,
])
"""


@pytest.mark.parametrize("root", [True, False], ids=["mounted", "below"])
@pytest.mark.parametrize(
    ("place", "aside", "there"),
    [
        ("staging", "artifacts/checkpoint/.staging", False),
        ("artifacts", "artifacts/checkpoint/.staging", True),
        ("artifacts/checkpoint", "artifacts/checkpoint/.staging", True),
        ("artifacts/checkpoint/a", "artifacts/checkpoint/a/.staging", True),
        ("../home", "staging", True),
    ],
)
def test_links_to_another_disk(in_namespace, place, aside, there, root) -> None:
    found = in_namespace(ON_ANOTHER_DISK.format(place=place, root=root))
    listed = ["checkpoint/a@2", "corpus/text@1"]
    did = {"removed": ["checkpoint/a@1"], "failed": [], "listed": listed}
    assert found == [aside, 1, did, [2, 0, 0], [], there, True]


def test_a_disk_mounted_on_a_kind_and_one_mounted_twice(in_namespace) -> None:
    """A rename between two mounts fails even if both are of one file system."""
    found = in_namespace("""
kind = registry.home / "artifacts" / "checkpoint"
(top / "twice").mkdir()
kind.mkdir(parents=True)
subprocess.run(["mount", "--bind", str(top / "twice"), str(kind)], check=True)
same = os.stat(kind).st_dev == os.stat(top).st_dev
registry.check_publishing("checkpoint", "a")
artifact = publish("a")
registry.verify(artifact)
aside = registry.staging_of("checkpoint", "a")
say([same, str(aside.relative_to(registry.home)), remove(artifact)])
""")
    did = {"removed": ["checkpoint/a@1"], "failed": [], "listed": []}
    assert found == [True, "artifacts/checkpoint/.staging", did]


@pytest.mark.parametrize("place", ["artifacts", "artifacts/checkpoint", "artifacts/checkpoint/a"])
def test_a_link_to_nothing_is_said_before_anything_is_made(registry, tmp_path, place) -> None:
    link = registry.home / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "unmounted")
    for act in (
        lambda: registry.check_publishing("checkpoint", "a"),
        lambda: registry.stage(Draft("checkpoint", "a", "3" * 64)).__enter__(),
    ):
        with pytest.raises(RunFailed, match="unmounted, and nothing is there") as caught:
            act()
        assert caught.value.where == str(link)
    assert not (tmp_path / "unmounted").exists()


@pytest.mark.parametrize("place", ["home", "home/work", "home/runs"])
def test_a_directory_is_not_made_through_a_link_to_nothing(tmp_path: Path, place: str) -> None:
    link = tmp_path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "unmounted")
    with pytest.raises(RunFailed, match="nothing is there") as caught:
        files.make_directory(link / "inside")
    assert caught.value.where == str(link)


def test_a_trial_leaves_nothing_and_needs_what_a_publish_needs(registry, monkeypatch) -> None:
    registry.check_publishing("checkpoint", "a")
    assert sorted(path.name for path in registry.home.iterdir()) == ["index.sqlite", "staging"]
    assert list(registry.staging.iterdir()) == []

    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))

    monkeypatch.setattr(files, "rename_durably", fail)
    with pytest.raises(RunFailed, match="cross-device link while trying to publish a checkpoint"):
        registry.check_publishing("checkpoint", "a")
    assert list(registry.staging.iterdir()) == []


def test_a_trial_that_was_killed_is_swept(registry, publish, monkeypatch) -> None:
    publish()
    monkeypatch.setattr(staging, "discard", lambda path: None)
    registry.check_publishing("corpus", "tiny")
    (left,) = registry.home.glob("artifacts/corpus/tiny/.staging-*")
    monkeypatch.undo()
    assert len(list(in_place(registry.home))) == 1
    assert registry.rebuild().broken == []
    assert registry.sweep() == [left]
    assert not left.exists()


def test_an_error_names_what_stays(registry) -> None:
    draft = Draft("corpus", "mine", "3" * 64)
    with pytest.raises(DataError) as caught, registry.stage(draft) as staged:  # noqa: PT012
        (staged.path / "sub").mkdir()
        (staged.path / "sub" / "link").symlink_to("x")
        staged.publish()
    assert caught.value.where == "'corpus/mine/sub/link'"
    with pytest.raises(ResourceError) as caught_full, registry.stage(draft) as staged:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(staged.path / "big"))
    assert caught_full.value.where == str(registry.staging / "big")
