from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from bc2.errors import RefError, RunFailed, UsageError
from bc2.registry import Draft, Registry

KEY = "1" * 64


def test_home_is_the_variable_then_the_nearest_then_here(tmp_path: Path, monkeypatch) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert Registry.open().home == deep / ".bc2"
    (tmp_path / "a" / ".bc2").mkdir()
    assert Registry.open().home == tmp_path / "a" / ".bc2"
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "other"))
    registry = Registry.open()
    assert registry.home == tmp_path / "other"
    assert registry.runs == tmp_path / "other" / "runs"
    assert registry.work == tmp_path / "other" / "work"
    assert Registry.open(tmp_path / "c").home == tmp_path / "c"


def test_looking_makes_nothing(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "none")
    assert registry.list() == []
    assert registry.count() == 0
    assert registry.find("corpus", KEY) is None
    with pytest.raises(RefError):
        registry.resolve("a")
    assert registry.rebuild().artifacts == []
    assert not (tmp_path / "none").exists()


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        Registry.open(tmp_path / "file")


def test_leaving_without_publish_leaves_nothing(registry) -> None:
    with registry.stage(Draft("corpus", "a", KEY)) as staged:
        assert staged.path.is_dir()
        assert list(staged.path.iterdir()) == []
        (staged.path / "x").write_bytes(b"x")
    assert list(registry.staging.iterdir()) == []
    assert registry.list() == []


def test_failing_without_publish_leaves_nothing(registry) -> None:
    def fail() -> None:
        with registry.stage(Draft("corpus", "a", KEY)) as staged:
            (staged.path / "x").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(registry.staging.iterdir()) == []
    assert registry.list() == []


def test_publishing_twice_is_publishing_once(registry, publish) -> None:
    one = publish()
    with registry.stage(Draft("corpus", "b", KEY)) as staged:
        (staged.path / "x").write_bytes(b"x")
        assert staged.publish() == staged.publish()
    assert publish() == one
    assert len(registry.list()) == 2
    assert list(registry.staging.iterdir()) == []


def test_facts_known_at_the_end_are_recorded(registry) -> None:
    with registry.stage(Draft("corpus", "a", KEY, facts={"a": 1, "b": 1})) as staged:
        (staged.path / "x").write_bytes(b"x")
        artifact = staged.publish({"b": 2})
    assert artifact.manifest.facts == {"a": 1, "b": 2}


def test_find_takes_the_furthest_and_asks_whether_the_run_is_over(registry, publish) -> None:
    end = publish("checkpoint", "run", step=300)
    late = publish("checkpoint", "run", step=400, finished=False)
    early = publish("checkpoint", "run", step=100, finished=False)
    assert len({end.key, late.key, early.key}) == 1
    assert registry.find("checkpoint", end.key) == end
    assert registry.find("checkpoint", end.key, finished=False) == late
    assert registry.find("checkpoint", end.key, finished=None) == late
    assert registry.find("corpus", end.key) is None
    assert registry.find("checkpoint", KEY) is None


def test_newest_is_of_a_finished_run(registry, publish) -> None:
    with pytest.raises(RefError, match=r"bc2 pretrain recipes/tiny\.toml.*bc2 registry import"):
        registry.newest("checkpoint")
    end = publish("checkpoint", "old", step=9)
    publish("checkpoint", "new", step=10, finished=False)
    assert registry.newest("checkpoint") == end


def test_list_is_newest_first_and_by_kind_and_name(registry, publish) -> None:
    a, b, c = publish("corpus", "a"), publish("tokens", "a"), publish("corpus", "c")
    assert registry.list() == [c, b, a]
    assert registry.list("corpus") == [c, a]
    assert registry.list(name="a") == [b, a]
    assert registry.list("tokens", "c") == []
    with pytest.raises(UsageError, match="did you mean 'corpus'"):
        registry.list("corpsu")


def test_parents_and_children(registry, publish) -> None:
    text, words = publish("corpus", "a"), publish("tokenizer", "b")
    shards = publish("tokens", "c", parents=(words, text))
    assert shards.parents == (words.digest, text.digest)
    assert registry.parents(shards) == [words, text]
    assert registry.children(text) == [shards]
    assert registry.children(shards) == []


def test_a_parent_must_be_registered(registry, publish) -> None:
    with (
        pytest.raises(RunFailed, match="not registered"),
        registry.stage(Draft("tokens", "a", KEY, parents=(KEY,))),
    ):
        pass
    parent = publish()
    draft = Draft("tokens", "a", KEY, parents=(parent.digest,))
    with registry.stage(draft) as staged:
        (staged.path / "x").write_bytes(b"x")
        registry.remove(parent)
        with pytest.raises(RunFailed, match=parent.ref):
            staged.publish()
    assert registry.list() == []
    assert not list((registry.home / "artifacts").glob("*/*/*"))
    assert not list(registry.staging.iterdir())


def test_tags_move_and_go(registry, publish) -> None:
    one, two = publish(seed=1), publish(seed=2)
    registry.tag(one, "best")
    registry.tag(one, "first")
    assert registry.get(one.digest).tags == ("best", "first")
    registry.tag(two, "best")
    assert registry.get(one.digest).tags == ("first",)
    assert registry.resolve("tiny:best").digest == two.digest
    registry.untag(two, "best")
    with pytest.raises(RefError):
        registry.resolve("tiny:best")
    with pytest.raises(RefError, match="no tag"):
        registry.untag(two, "best")
    with pytest.raises(UsageError):
        registry.tag(one, "../x")


def test_remove_refuses_what_is_needed(registry, publish) -> None:
    parent = publish("corpus")
    child = publish("tokens", parents=(parent,))
    with pytest.raises(RunFailed, match="needed by tokens/tiny"):
        registry.remove(parent)
    registry.tag(child, "best")
    with pytest.raises(RunFailed, match="tagged best"):
        registry.remove(child)
    registry.untag(child, "best")
    with child.hold(), pytest.raises(RunFailed, match="in use"):
        registry.remove(child)
    registry.verify(child)
    registry.remove(child)
    registry.remove(parent)
    assert registry.list() == []
    assert not child.path.exists()
    assert list(registry.staging.iterdir()) == []
    with pytest.raises(RefError):
        registry.remove(parent)


def test_remove_leaves_a_copy_outside_alone(registry, publish, tmp_path: Path) -> None:
    import shutil

    artifact = publish()
    shutil.copytree(artifact.path, tmp_path / "copy")
    outside = registry.resolve(str(tmp_path / "copy"))
    registry.remove(outside)
    assert (tmp_path / "copy" / "manifest.json").exists()
    assert not artifact.path.exists()


def test_a_registry_may_be_used_across_a_fork(registry, publish) -> None:
    publish()
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_use, args=(registry, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    publish(seed=9)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(registry.list()) == 5


def _use(registry: Registry, number: int) -> None:
    with registry.stage(Draft("corpus", f"n{number}", KEY)) as staged:
        (staged.path / "x").write_bytes(b"x")
        staged.publish()


def test_sweep_takes_the_dead_and_leaves_the_living(registry) -> None:
    with registry.stage(Draft("corpus", "a", KEY)) as staged:
        dead = registry.staging / "12345-dead"
        (dead / "sub").mkdir(parents=True)
        (dead / "sub" / "x").write_bytes(b"x")
        assert registry.sweep() == [dead]
        assert not dead.exists()
        assert staged.path.exists()
        (staged.path / "x").write_bytes(b"x")
        staged.publish()
    assert registry.sweep() == []


def test_newest_is_of_a_role_that_the_caller_can_use(registry, publish) -> None:
    base = publish("checkpoint", "a", role="base")
    chat = publish("checkpoint", "a", seed=1, role="chat")
    adapter = publish("checkpoint", "b", role="adapter")
    assert registry.newest("checkpoint") == adapter
    assert registry.newest("checkpoint", ("base", "chat", "merged")) == chat
    assert registry.newest("checkpoint", ("base",)) == base
    assert registry.list(roles=("adapter", "base")) == [adapter, base]
    with pytest.raises(RefError, match="of role reward yet: the newest, checkpoint/b, is of role"):
        registry.newest("checkpoint", ("reward",))


def test_a_run_is_found_by_its_key_alone(registry, publish) -> None:
    early = publish("checkpoint", "run", step=1, finished=False)
    publish("checkpoint", "other", step=2, finished=False)
    end = publish("checkpoint", "run", step=2)
    assert registry.list("checkpoint", key=early.key) == [end, early]
    assert registry.list("checkpoint", key=early.key, finished=False) == [early]


def test_what_is_not_registered_gets_no_tag(registry, publish) -> None:
    artifact = publish()
    registry.remove(artifact)
    with pytest.raises(RefError, match="corpus/tiny is not registered"):
        registry.tag(artifact, "best")
    assert not list(registry.home.glob("artifacts/*/*/tags/*"))
