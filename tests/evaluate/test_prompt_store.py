"""Prompts are built once, whoever asks, and only whole ones count."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bc2.errors import ResourceError, RunFailed
from bc2.evaluate.prompt_store import PromptStore
from bc2.evaluate.prompts import Prompt, TaskPrompts


def task(samples: int, name: str = "cmmlu_law") -> TaskPrompts:
    return TaskPrompts(name, "score", samples, {})


def prompts(count: int, mark: int = 7) -> Iterator[Prompt]:
    for number in range(count):
        yield Prompt(number, "d" * 64, 1, [[mark, number]], [(0, [1])])


def never() -> Iterator[Prompt]:
    raise AssertionError("built again")


def in_process(work: Callable[[], None]) -> int:
    """Run it in another process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def test_what_is_stored_is_not_built_again(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "key")
    assert store.find(task(5)) is None
    first = store.obtain(task(5), lambda: prompts(5))
    again = store.obtain(task(5), never)
    assert first.read(0, 5) == again.read(0, 5) == list(prompts(5))
    assert store.find(task(5, "cmmlu_la")) is None
    assert store.find(task(5, "cmmlu_law-5.parquet")) is None


def test_more_serve_fewer_and_not_the_other_way(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "key")
    store.obtain(task(3), lambda: prompts(3))
    assert store.find(task(4)) is None
    store.obtain(task(12), lambda: prompts(12))
    for samples in (1, 3, 4, 12):
        file = store.obtain(task(samples), never)
        assert file.read(0, samples) == list(prompts(samples))
    assert store.find(task(13)) is None


def test_tasks_do_not_share_a_name(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "key")
    names = ["a/b", "a%2Fb", "a", "a-3", "../a"]
    for mark, name in enumerate(names):
        store.obtain(task(3, name), lambda mark=mark: prompts(3, mark))
    for mark, name in enumerate(names):
        assert store.obtain(task(3, name), never).read(0, 3) == list(prompts(3, mark))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    built = tmp_path / "built"

    def slowly() -> Iterator[Prompt]:
        with built.open("a") as out:
            out.write("built\n")
        time.sleep(0.5)
        yield from prompts(4)

    def ask() -> None:
        file = PromptStore(tmp_path / "key").obtain(task(4), slowly)
        assert file.read(0, 4) == list(prompts(4))

    children = [in_process(ask) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert built.read_text() == "built\n"


def test_a_builder_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "key")
    begun = tmp_path / "begun"

    def endless() -> Iterator[Prompt]:
        yield from prompts(600)
        begun.touch()
        time.sleep(60)

    def leftovers() -> list[str]:
        return sorted(path.name for path in store.folder.iterdir() if path.is_file())

    for _ in range(2):
        child = in_process(lambda: store.obtain(task(700), endless) and None)
        while not begun.exists():
            time.sleep(0.01)
        begun.unlink()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert store.find(task(1)) is None
    assert len(leftovers()) == 1, "each that is killed leaves another file"
    file = store.obtain(task(700), lambda: prompts(700))
    assert file.read(512, 700)[-1].doc_id == 699
    assert leftovers() == ["cmmlu_law-700.parquet"]


def test_an_error_while_building_leaves_nothing(tmp_path: Path) -> None:
    store = PromptStore(tmp_path / "key")

    def broken() -> Iterator[Prompt]:
        yield from prompts(300)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.obtain(task(400), broken)
    assert [path.name for path in store.folder.iterdir()] == ["locks"]
    assert store.obtain(task(400), lambda: prompts(400)).read(0, 1) == list(prompts(1))


@pytest.mark.parametrize("damaged", [b"", b'{"tasks": {', b"\xff\xfe\x00", b"\0" * 64])
def test_damaged_facts_are_none(tmp_path: Path, damaged: bytes) -> None:
    """They are found out and recorded again."""
    store = PromptStore(tmp_path / "key")
    assert store.facts() is None
    store.record({"tasks": {"数学": 1}})
    assert store.facts() == {"tasks": {"数学": 1}}
    (store.folder / "suite.json").write_bytes(damaged)
    assert store.facts() is None


def test_a_cache_that_is_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = PromptStore(tmp_path / "file" / "key")
    for use in (store.facts, lambda: store.record({}), lambda: store.obtain(task(1), never)):
        with pytest.raises(RunFailed, match=r"cannot be kept: not a directory.*set BC2_CACHE") as e:
            use()
        assert str(tmp_path / "file") in str(e.value.where)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the cache may be another one than the home's."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = PromptStore(tmp_path / "key")
    monkeypatch.setattr("bc2.evaluate.prompt_store.replace_durably", full)
    monkeypatch.setattr("bc2.evaluate.prompt_store.write_prompts", full)
    for use in (lambda: store.record({}), lambda: store.obtain(task(1), lambda: prompts(1))):
        with pytest.raises(ResourceError, match=r"disk full.*set BC2_CACHE") as caught:
            use()
        assert caught.value.where == str(tmp_path / "key")
