"""The cache of samples: what is lost, damaged or half written is made again, and is the same."""

from __future__ import annotations

import errno
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_samples import drawn

from bc2 import recipe
from bc2.align.samples import rendered_chats as rendering
from bc2.align.samples.render_settings import RenderSettings
from bc2.align.samples.rendered_chats import ChatSource, rendered_chats
from bc2.align.samples.sample_store import SampleChunk, Samples, merge
from bc2.align.samples.speech import chat_source
from bc2.align.sft.sft_config import SftConfig
from bc2.errors import ResourceError
from bc2.pipeline.session import Session
from bc2.registry import Registry


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Samples on disk, joined from two chunks, which are still there."""
    (tmp_path / "store").mkdir()
    for number in range(2):
        made = drawn(30, 20, 64, weighted=True, seed=number)
        index = list(range(30 * number, 30 * number + 30))
        SampleChunk(made, index).write(tmp_path / f"{number}.npz")
    merge(sorted(tmp_path.glob("*.npz")), tmp_path / "store")
    return tmp_path / "store"


def test_chunks_are_joined_in_order(stored: Path) -> None:
    samples = Samples.open(stored)
    plain = [*drawn(30, 20, 64, weighted=True), *drawn(30, 20, 64, weighted=True, seed=1)]
    assert len(samples) == 60
    assert samples.index.tolist() == [*range(60)]
    assert samples.trained.tolist() == [one.trained for one in plain]
    for number, one in enumerate(plain):
        found = samples.sample(number)
        for name in ("tokens", "labels", "weights"):
            np.testing.assert_array_equal(getattr(found, name), getattr(one, name))
    assert not [*stored.glob("*.tmp")]


@pytest.mark.parametrize("name", ["tokens", "labels", "weights", "starts", "lengths", "index"])
def test_one_changed_byte_is_seen(stored: Path, name: str) -> None:
    data = bytearray((stored / f"{name}.npy").read_bytes())
    data[-3] ^= 4
    (stored / f"{name}.npy").write_bytes(data)
    with pytest.raises(ValueError, match=name):
        Samples.open(stored)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x7f"),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "empty": lambda file: file.write_bytes(b""),
    "lost": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["labels.npy", "samples.json"])
def test_a_damaged_cache_is_made_again(source: ChatSource, name: str, damage: str) -> None:
    folder = _filled(source)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    DAMAGES[damage](folder / name)
    folder = _filled(source)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_made_again(
    source: ChatSource, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(rendering, "_CHUNK", 50)
    folder = _filled(source)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "samples.json").unlink()

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(rendering, "merge", broken)
        with pytest.raises(KeyboardInterrupt):
            _filled(source)
    DAMAGES[damage](sorted((folder / "chunks").iterdir())[1])
    folder = _filled(source)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_full_disk_is_an_error_and_no_signal(stored: Path) -> None:
    """A mapped file would end the process at the first page that finds no room."""
    chunks = sorted(stored.parent.glob("*.npz"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            merge(chunks, stored)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(Samples.open(stored)) == 60  # what was there is whole


def test_a_full_disk_says_where(source: ChatSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as writing:
        writing.setattr(rendering, "merge", full)
        with pytest.raises(ResourceError, match=r"disk full while keeping samples in .*BC2_CACHE"):
            _filled(source)
    assert (_filled(source) / "tokens.npy").exists()


@pytest.fixture
def source(chat: Path) -> ChatSource:
    """The conversations of chat.toml, and the layout that its model is to learn."""
    loaded, registry = recipe.load("chat.toml", ["chats.heldout_fraction=0"]), Registry.open()
    chats = Session(registry).obtain("chats", loaded, command=["bc2"])
    base = registry.resolve("checkpoint/small", "checkpoint")
    return chat_source(chats.path, chats, base, loaded.get(SftConfig).chat_layout, "sft")


def _filled(source: ChatSource) -> Path:
    """The folder of the cache that has the samples."""
    rendering.rendered_chats(source, "train", rendering.RenderSettings(64), workers=1)
    (facts,) = Path("cache/chats").glob("*/train/samples.json")
    return facts.parent


def test_what_killed_processes_of_this_machine_left_is_removed(source: ChatSource) -> None:
    samples = rendered_chats(source, "train", RenderSettings(64))
    folder = Path(samples.tokens.filename).parent
    left = folder / f"tokens.{socket.gethostname()}.1.tmp"
    other = folder / "tokens.another-machine.1.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    (folder / "samples.json").unlink()
    again = rendered_chats(source, "train", RenderSettings(64))
    assert again.crc32 == samples.crc32
    assert not left.exists()
    assert other.exists()
