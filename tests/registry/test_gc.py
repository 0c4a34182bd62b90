from __future__ import annotations

from pathlib import Path

import pytest

from bc2.errors import RunFailed, UsageError
from bc2.files import lock_directory
from bc2.registry import Draft, Registry, queries
from bc2.registry.gc import carry_out, choose, left_alone, plan


def forget(registry, artifact) -> None:
    with registry.index.writing() as connection:
        queries.delete(connection, artifact.digest)


def test_a_plan_removes_nothing(registry, publish) -> None:
    artifact = publish()
    (registry.staging / "1-dead").mkdir()
    (registry.staging / "1-dead" / "x").write_bytes(b"123")
    doomed = plan(registry, [artifact])
    assert (doomed[0].path.name, doomed[0].size) == ("1-dead", 3)
    assert doomed[1].artifact == artifact
    assert (registry.staging / "1-dead").exists()
    registry.verify(artifact)
    done = carry_out(doomed)
    assert len(done.removed) == 2
    assert registry.list() == []
    assert list(registry.staging.iterdir()) == []
    assert not artifact.path.exists()


def test_nothing_alive_is_planned(registry, publish) -> None:
    publish()
    with registry.stage(Draft("corpus", "a", "3" * 64)):
        assert plan(registry) == []


def test_checkpoints_of_a_run_going_on(registry, publish) -> None:
    def save(step: int, **options: object):
        return publish("checkpoint", "run", step=step, finished=False, **options)

    made = [save(step) for step in range(1, 8)]
    other = save(1, seed=5)
    end = publish("checkpoint", "done", step=1)
    registry.tag(made[1], "good")
    publish("scores", "s", parents=(made[2],))
    doomed = [item.artifact.position.step for item in plan(registry, keep_last=2)]
    assert doomed == [5, 4, 1]
    with made[3].hold():
        done = carry_out(plan(registry, keep_last=2))
        assert [item.artifact.position.step for item, _ in done.kept] == [4]
    left = {one.digest for one in registry.list("checkpoint")}
    assert left == {one.digest for one in (made[1], made[2], made[3], made[5], made[6], other, end)}
    with pytest.raises(UsageError):
        plan(registry, keep_last=0)


def test_named_artifacts_go_children_first(registry, publish) -> None:
    text = publish("corpus", "a")
    shards = publish("tokens", "b", parents=(text,))
    base = publish("checkpoint", "c", parents=(shards, text))
    with pytest.raises(RunFailed, match=f"name {base.ref} as well"):
        plan(registry, [text, shards])
    registry.tag(base, "best")
    with pytest.raises(RunFailed, match="tagged best"):
        plan(registry, [text, shards, base])
    registry.untag(base, "best")
    done = carry_out(plan(registry, [text, shards, base]))
    assert [item.artifact.name for item in done.removed] == ["c", "b", "a"]
    assert registry.list() == []


def test_a_child_published_after_the_plan_saves_its_parent(registry, publish) -> None:
    text = publish("corpus", "a")
    doomed = plan(registry, [text])
    publish("tokens", "b", parents=(text,))
    done = carry_out(doomed)
    assert done.removed == []
    assert "needed by tokens/b" in done.kept[0][1]
    registry.verify(text)


def test_what_is_half_made_goes_unless_it_is_in_flight_or_needed(registry, publish) -> None:
    kept = publish("corpus", "kept")
    orphan, flying = publish("corpus", "orphan"), publish("corpus", "flying")
    zeros = publish("corpus", "zeros")
    parent = publish("tokenizer", "parent")
    publish("tokens", "child", parents=(parent,))
    tagged = publish("corpus", "tagged")
    registry.tag(tagged, "best")
    for artifact in (orphan, flying, parent, tagged):
        forget(registry, artifact)
        (artifact.path / "manifest.json").unlink()
    forget(registry, zeros)
    (zeros.path / "manifest.json").write_bytes(bytes(100))
    with lock_directory(flying.path):
        doomed = plan(registry)
        assert [item.path for item in doomed] == [orphan.path, zeros.path]
        assert len(carry_out(doomed).removed) == 2
    assert not orphan.path.exists()
    registry.verify(kept)
    assert all(artifact.path.is_dir() for artifact in (flying, parent, tagged))


def test_what_the_index_forgot_stays(registry, publish) -> None:
    """As with an index that was restored from an older copy."""
    publish("corpus", "kept")
    lost = [publish("checkpoint", "run", step=step) for step in (1, 2, 3)]
    for artifact in lost:
        forget(registry, artifact)
    (lost[1].path / "data.bin").write_bytes(b"shorter")
    (lost[2].path / "manifest.json").write_bytes(b"{}")
    assert [artifact.digest for artifact in registry.forgotten()] == [lost[0].digest]
    assert plan(registry) == []
    stay = dict(left_alone(registry))
    assert stay.keys() == {artifact.path for artifact in lost}
    assert "rebuild" in stay[lost[0].path]
    assert all(f"gc {artifact.path} --yes" in stay[artifact.path] for artifact in lost[1:])
    assert [artifact.digest for artifact in registry.rebuild().adopted] == [lost[0].digest]
    assert registry.forgotten() == []
    registry.verify(registry.get(lost[0].digest))


def test_a_directory_that_is_not_registered_goes_when_it_is_named(registry, publish) -> None:
    kept, lost = publish("corpus", "kept"), publish("corpus", "lost")
    forget(registry, lost)
    (lost.path / "data.bin").write_bytes(b"shorter")
    assert choose(registry, str(kept.path)) == kept
    folder = choose(registry, str(lost.path))
    assert folder == lost.path
    done = carry_out(plan(registry, folders=[folder]))
    assert [item.path for item in done.removed] == [lost.path]
    assert not lost.path.exists()


def test_a_registered_one_with_a_broken_manifest_goes_when_its_path_is_named(
    registry, publish
) -> None:
    broken = publish()
    (broken.path / "manifest.json").write_bytes(b"{}")
    chosen = choose(registry, str(broken.path))
    assert chosen == broken
    assert len(carry_out(plan(registry, [broken])).removed) == 1
    assert not broken.path.exists()


def test_an_orphan_adopted_after_the_plan_stays(registry, publish) -> None:
    publish("corpus", "kept")
    orphan = publish("corpus", "orphan")
    forget(registry, orphan)
    doomed = plan(registry, folders=[orphan.path])
    assert publish("corpus", "orphan") == orphan
    done = carry_out(doomed)
    assert done.removed == []
    assert len(done.kept) == len(done.failed) == 1
    registry.verify(orphan)


def test_one_in_use_is_said_and_the_others_go(registry, publish) -> None:
    used, free = publish("corpus", "used"), publish("corpus", "free")
    with used.hold():
        done = carry_out(plan(registry, [used, free]))
    assert [item.artifact for item in done.removed] == [free]
    assert [error.where for error in done.failed] == [str(used.path)]
    assert registry.list() == [used]


def test_an_index_that_knows_nothing_is_not_believed(registry, publish) -> None:
    artifact = publish()
    forget(registry, artifact)
    with pytest.raises(RunFailed, match="rebuild"):
        plan(registry)
    registry.verify(artifact)


def test_half_written_tags_go(registry, publish) -> None:
    artifact = publish()
    registry.tag(artifact, "best")
    torn = artifact.path.parent / "tags" / ".best.123.tmp"
    torn.write_text("12")
    assert len(carry_out(plan(registry)).removed) == 1
    assert not torn.exists()
    assert registry.resolve("tiny:best").digest == artifact.digest


def test_a_row_without_files_can_be_removed(registry, publish) -> None:
    import shutil

    artifact = publish()
    shutil.rmtree(artifact.path)
    assert len(carry_out(plan(registry, [artifact])).removed) == 1
    assert registry.list() == []


def test_looking_at_a_home_that_is_not_there_makes_none(tmp_path: Path) -> None:
    empty = Registry.open(tmp_path / "home" / "below")
    assert plan(empty) == []
    assert left_alone(empty) == []
    assert not (tmp_path / "home").exists()
