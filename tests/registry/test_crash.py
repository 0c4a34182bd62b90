"""Power cuts: the file operations of one action, replayed with what was not synced dropped.

An audit hook sees every operation on names before it happens, whoever does it, so
nothing can bypass the recording; fsync, which has no audit event, is wrapped. At
each step the tree is photographed. A crash may then keep, lose or cut whatever had
not been synced: file contents since the last fsync of the file, names since the last
fsync of the directory. The database is SQLite's own business: it is put in as it was
before the action, or after, as the moment allows.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bc2 import files
from bc2.errors import Bc2Error
from bc2.registry import Artifact, Draft, Position, Registry
from bc2.registry import publish as publishing
from bc2.registry.manifest import FileEntry
from bc2.registry.places import in_place

KEY = "5" * 64
NAME_EVENTS = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"
}  # fmt: skip


@dataclass
class Photo:
    """The tree at one moment: what a program sees, and what is on disk."""

    label: str
    phase: str
    names: dict[int, dict[str, int]]
    data: dict[int, bytes]
    synced_names: dict[int, dict[str, int]]
    synced_data: dict[int, bytes]


@dataclass
class Recorder:
    """Photographs `home` at every operation; inodes are numbered, since numbers are reused."""

    home: Path
    phase: str = "old"
    photos: list[Photo] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)
    count: int = 0
    synced_names: dict[int, dict[str, int]] = field(default_factory=dict)
    synced_data: dict[int, bytes] = field(default_factory=dict)
    busy: bool = False

    def look(self) -> tuple[dict[int, dict[str, int]], dict[int, bytes]]:
        names: dict[int, dict[str, int]] = {}
        data: dict[int, bytes] = {}
        seen: dict[int, int] = {}

        def number(path: str) -> int:
            inode = os.lstat(path).st_ino
            if inode not in self.numbers:
                self.count += 1
                self.numbers[inode] = self.count
            seen[inode] = self.numbers[inode]
            return self.numbers[inode]

        def walk(path: str) -> int:
            here = number(path)
            if os.path.isdir(path):
                inside = [name for name in os.listdir(path) if not name.startswith("index.")]
                names[here] = {}
                names[here] |= {name: walk(os.path.join(path, name)) for name in inside}
            else:
                fd = os.open(path, os.O_RDONLY)
                data[here] = os.read(fd, 1 << 20)
                os.close(fd)
            return here

        walk(str(self.home.parent))
        self.numbers = seen
        return names, data

    def begin(self) -> None:
        """Everything there now is on disk."""
        self.synced_names, self.synced_data = self.look()

    def snap(self, label: str) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            names, data = self.look()
        finally:
            self.busy = False
        self.photos.append(
            Photo(label, self.phase, names, data, dict(self.synced_names), dict(self.synced_data))
        )

    def synced(self, fd: int) -> None:
        names, data = self.look()
        here = self.numbers.get(os.fstat(fd).st_ino)
        if here in names:
            self.synced_names[here] = names[here]
        elif here in data:
            self.synced_data[here] = data[here]


_recorder: Recorder | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    recorder = _recorder
    if recorder is None or recorder.busy:
        return
    if event == "open":
        path, _, flags = args
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
        if isinstance(path, str | bytes | os.PathLike):
            recorder.snap(f"open {os.path.basename(os.fsdecode(path))}")
    elif event in NAME_EVENTS:
        recorder.snap(f"{event} {args[0]}")


def record(home: Path, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Do `act` under the recorder. Its `phase` goes old, either, new around the index's commit."""
    global _recorder, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    recorder = Recorder(home)
    fsync = os.fsync

    def recorded_fsync(fd: int) -> None:
        recorder.snap("fsync")
        fsync(fd)
        recorder.synced(fd)

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            recorder.snap("before the index")
            recorder.phase = "either"
            recorder.snap("at the index")
            result = original(*args, **kwargs)
            recorder.phase = "new"
            recorder.snap("after the index")
            return result

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recorded_fsync)
        patch.setattr(publishing, "_register", around(publishing._register))
        patch.setattr(Registry, "_forget", around(Registry._forget))
        recorder.begin()
        _recorder = recorder
        try:
            act()
        finally:
            _recorder = None
    recorder.snap("the end")
    return recorder


def build(photo: Photo, root: Path, mood: str, rng: random.Random) -> None:
    """The tree after a crash at `photo`; `mood` says what became of what was not synced."""

    def names(here: int) -> dict[str, int]:
        old = photo.synced_names.get(here, {})
        new = photo.names.get(here, old)
        if mood == "lost":
            return old
        if mood != "mixed":
            return new
        chosen = {}
        for name in sorted({*old, *new}):
            entry = rng.choice((old, new)).get(name)
            if entry is not None:
                chosen[name] = entry
        return chosen

    def content(here: int) -> bytes:
        old, new = photo.synced_data.get(here), photo.data.get(here)
        if old is not None and (new is None or old == new):
            return old
        half = (new or b"")[: len(new or b"") // 2]
        options = {
            "lost": old or b"",
            "emptied": old or b"",
            "cut": half,
            "kept": new or b"",
            "mixed": rng.choice((old or b"", half, new or b"")),
        }
        return options[mood]

    def put(here: int, path: Path) -> None:
        if here in photo.names or here in photo.synced_names:
            path.mkdir(exist_ok=True)
            for name, there in names(here).items():
                put(there, path / name)
        else:
            path.write_bytes(content(here))

    top = next(iter(photo.names))
    put(top, root)


def crashes(
    recorder: Recorder, place: Path, databases: dict[str, bytes | None], mixes: int
) -> Iterator[tuple[str, str, Path]]:
    """Every different tree that a crash may leave, each with the index it may have.

    The last moments come first: there most is promised.
    """
    seen: set[str] = set()
    moods = [(mood, 0) for mood in ("lost", "emptied", "cut", "kept")]
    moods += [("mixed", seed) for seed in range(mixes)]
    for step, photo in reversed(list(enumerate(recorder.photos))):
        for mood, seed in moods:
            root = place / "crash"
            root.mkdir(parents=True)
            build(photo, root, mood, random.Random(f"{step} {seed}"))
            home = root / recorder.home.name
            for phase in ("old", "new") if photo.phase == "either" else (photo.phase,):
                mark = fingerprint(root) + phase
                if mark in seen:
                    continue
                seen.add(mark)
                trial = place / "trial"
                shutil.copytree(root, trial)
                database = databases[phase]
                home = trial / recorder.home.name
                if database is not None:
                    assert home.is_dir(), "the index exists before anything else"
                    (home / "index.sqlite").write_bytes(database)
                yield f"{step} {photo.label}: {mood}{seed}, {phase} index", phase, home
                shutil.rmtree(trial)
            shutil.rmtree(root)


def fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(f"{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"directory")
    return digest.hexdigest()


def database(home: Path) -> bytes | None:
    path = home / "index.sqlite"
    assert not path.with_name("index.sqlite-wal").exists()
    return path.read_bytes() if path.exists() else None


def make(registry: Registry, name: str, parents: tuple[str, ...] = ()) -> Artifact:
    draft = Draft("checkpoint", name, KEY, parents, position=Position(1, 2))
    with registry.stage(draft) as staged:
        (staged.path / "weights").write_bytes(name.encode() * 50)
        (staged.path / "optimizer" / "deep").mkdir(parents=True)
        (staged.path / "optimizer" / "deep" / "a").write_bytes(b"a" * 70)
        return staged.publish(known=[write_in_place(staged.path, "optimizer/deep/b")])


def write_in_place(root: Path, path: str) -> FileEntry:
    """As a checkpoint's tensors are written: past the page cache, and digested on the way."""
    sha256, data = hashlib.sha256(), np.arange(files.BLOCK, dtype=np.uint16).view(np.uint8)
    (root / path).write_bytes(bytes(len(data)))
    with files.writing_in_place(root / path) as out:
        out.run(0, [data], sha256.update)
    return FileEntry(path=path, size=len(data), sha256=sha256.hexdigest())


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LEAST_DIRECT", files.BLOCK)


def sound(registry: Registry) -> set[str]:
    """The digests of the registered artifacts, all of which verify, manifests included."""
    listed = registry.list()
    for artifact in listed:
        registry.verify(artifact)
    return {artifact.digest for artifact in listed}


def check_recorded(recorder: Recorder) -> None:
    """The recorder saw a publish from its first directory to the index, in this order."""
    labels = [photo.label for photo in recorder.photos]
    moved = f"os.rename {recorder.home / 'staging'}"
    steps = ["os.mkdir", "open weights", "open manifest.json", moved, "after the index"]
    at = [next(i for i, label in enumerate(labels) if label.startswith(step)) for step in steps]
    assert at == sorted(at)


def replay_publish(
    tmp_path: Path, monkeypatch, *, first: bool, mixes: int, in_order: bool = True
) -> int:
    """Publish under the recorder, and look at every crash. Returns how many there were."""
    home = tmp_path / "world" / "home"
    registry = Registry.open(home)
    home.parent.mkdir()
    before = set() if first else {make(registry, "before").digest}
    databases = {"old": database(home)}
    recorder = record(home, lambda: make(registry, "after", tuple(before)), monkeypatch)
    databases["new"] = database(home)
    after = sound(registry)
    if in_order:
        check_recorded(recorder)
    count = 0
    for label, phase, at in crashes(recorder, tmp_path, databases, mixes):
        count += 1
        try:
            fresh = Registry.open(at)
            if phase == "new" or not first:
                assert sound(fresh) == (before if phase == "old" else after)
            assert fresh.rebuild().broken == []
            found = sound(fresh)
            assert before <= found <= after
            for folder in in_place(at):
                assert folder.name in {digest[:16] for digest in found}
            assert make(fresh, "after", tuple(before)).digest in after
            assert sound(fresh) == after
            fresh.sweep()
            assert list(fresh.staging.iterdir()) == []
        except (AssertionError, Bc2Error, OSError) as error:
            raise AssertionError(f"crash at {label}: {error!r}") from error
    return count


@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_a_publish_survives_every_crash(tmp_path: Path, monkeypatch, capsys, first: bool) -> None:
    count = replay_publish(tmp_path, monkeypatch, first=first, mixes=3)
    # Fewer different trees than this and the recorder has missed something.
    assert count >= 30


@pytest.mark.slow
@pytest.mark.parametrize("first", [False, True], ids=["later", "first"])
def test_a_publish_survives_many_crashes(tmp_path: Path, monkeypatch, capsys, first: bool) -> None:
    # About 45 different trees: there is little that is not synced at any moment.
    assert replay_publish(tmp_path, monkeypatch, first=first, mixes=60) >= 40


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (files, "sync_tree"),
        (files, "sync_file"),
        (files, "write_durably"),
        (files, "sync_directory"),
        (publishing, "_sync_names"),
    ],
)
def test_the_replay_notices_a_sync_left_out(tmp_path, monkeypatch, capsys, module, name) -> None:
    def careless(path: Path, data: bytes | None = None) -> None:
        if data is not None:
            path.write_bytes(data)

    monkeypatch.setattr(module, name, careless)
    with pytest.raises(AssertionError, match="crash at"):
        replay_publish(tmp_path, monkeypatch, first=False, mixes=0)


def test_the_replay_notices_an_index_that_comes_first(tmp_path, monkeypatch, capsys) -> None:
    real = publishing._rename

    def hasty(aside: Path, target: Path) -> bool:
        from bc2.registry import manifest as mf

        home = target.parents[3]
        publishing._register(Registry.open(home).index, Artifact.of(mf.read(aside), target), False)
        return real(aside, target)

    monkeypatch.setattr(publishing, "_rename", hasty)
    with pytest.raises(AssertionError, match="crash at"):
        replay_publish(tmp_path, monkeypatch, first=False, mixes=0, in_order=False)


def test_a_tag_survives_every_crash(tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "world" / "home"
    registry = Registry.open(home)
    one, two = make(registry, "a"), make(registry, "b", ())
    other = make(registry, "a", (two.digest,))
    registry.tag(one, "best")
    databases = {"old": database(home)}
    recorder = record(home, lambda: registry.tag(other, "best"), monkeypatch)
    databases["new"] = database(home)
    count = 0
    for label, _, at in crashes(recorder, tmp_path, databases, 4):
        count += 1
        fresh = Registry.open(at)
        assert fresh.rebuild().broken == [], label
        assert fresh.resolve("a:best").digest in {one.digest, other.digest}, label
        assert len(sound(fresh)) == 3
    assert count >= 4


def test_a_removal_survives_every_crash(tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "world" / "home"
    registry = Registry.open(home)
    kept, gone = make(registry, "a"), make(registry, "b")
    databases = {"old": database(home)}
    recorder = record(home, lambda: registry.remove(gone), monkeypatch)
    databases["new"] = database(home)
    both, one = {kept.digest, gone.digest}, {kept.digest}
    count = 0
    for label, phase, at in crashes(recorder, tmp_path, databases, 3):
        count += 1
        fresh = Registry.open(at)
        assert sound(fresh) == (both if phase == "old" else one), label
        assert fresh.rebuild().broken == [], label
        assert sound(fresh) in (both, one), label
        fresh.sweep()
        assert list(fresh.staging.iterdir()) == [], label
    assert count >= 8
