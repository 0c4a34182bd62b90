"""What file systems and owners refuse: an artifact stays whole and registered, or goes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest

from bc2 import files
from bc2.errors import RunFailed
from bc2.registry import Artifact, Registry, removal, staging
from bc2.registry.gc import carry_out, plan


def refuse(monkeypatch, module, name: str, code: int, when) -> None:
    """Have a function of `module` fail with `code` where `when` holds of its first argument."""
    real = getattr(module, name)

    def failing(path, *rest, **options):
        if when(Path(path)):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(module, name, failing)


def test_what_can_be_moved_is_not_changed_by_asking(registry, publish) -> None:
    artifact = publish()
    before = sorted(registry.home.rglob("*"))
    found = removal.prepare(artifact.path)
    assert found.trash is not None
    assert found.trash.parent == registry.staging
    assert sorted(registry.home.rglob("*")) == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EBUSY, errno.EROFS, errno.EIO])
def test_a_move_that_fails_after_all_leaves_all_as_it_was(
    registry, publish, monkeypatch, code: int
) -> None:
    artifact = publish("checkpoint", "run", step=3, role="chat")
    with monkeypatch.context() as patch:
        refuse(patch, files, "rename_durably", code, lambda path: path == artifact.path)
        with pytest.raises(RunFailed, match="cannot be removed") as caught:
            registry.remove(artifact)
    assert caught.value.where == str(artifact.path)
    assert registry.list() == [artifact]
    registry.verify(artifact)
    assert list(registry.staging.iterdir()) == []
    registry.remove(artifact)
    assert registry.list() == []


def test_no_room_to_ask_is_no_reason_to_keep(registry, publish, monkeypatch) -> None:
    artifact = publish()
    refuse(monkeypatch, staging, "create", errno.ENOSPC, lambda _: True)
    registry.remove(artifact)
    assert not artifact.path.exists()


def test_a_link_goes_and_what_it_points_at_stays(registry, publish, tmp_path: Path) -> None:
    artifact = publish()
    elsewhere = tmp_path / "elsewhere"
    artifact.path.rename(elsewhere)
    artifact.path.symlink_to(elsewhere)
    registry.verify(artifact)
    registry.remove(artifact)
    assert not artifact.path.is_symlink()
    assert (elsewhere / "manifest.json").exists()
    assert registry.list() == []


def test_behind_a_link_to_nothing_it_stays_registered(registry, publish, tmp_path: Path) -> None:
    artifact = publish()
    folder, away = artifact.path.parent.parent, tmp_path / "disk"
    folder.rename(away)
    folder.symlink_to(away)
    away.rename(tmp_path / "unmounted")
    for act in (lambda: registry.remove(artifact), registry.rebuild):
        with pytest.raises(RunFailed, match="points at") as caught:
            act()
        assert caught.value.where == str(folder)
    (tmp_path / "unmounted").rename(away)
    registry.verify(artifact)


def test_on_a_lower_layer_it_is_removed_in_place(in_namespace) -> None:
    found = in_namespace("""
one, two = publish("a"), publish("b")
overlay(registry.home)
os.rename(one.path / "data.bin", one.path / "x"), os.rename(one.path / "x", one.path / "data.bin")
try:
    os.rename(one.path, registry.staging / "x")
    moved = True
except OSError:
    moved = False
say([moved, remove(one), os.path.exists(one.path), list(map(str, registry.staging.iterdir()))])
""")
    wanted = {"removed": ["checkpoint/a@1"], "failed": [], "listed": ["checkpoint/b@1"]}
    assert found == [False, wanted, False, []]


def test_a_kill_at_any_moment_of_a_removal_in_place(in_namespace) -> None:
    """What is left is registered and whole, or forgotten and whole, or taken for no artifact."""
    found = in_namespace("""
import signal

def die_at(number):
    count = 0
    def look(event, args):
        nonlocal count
        if event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "sqlite3.connect"):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    return look

for name in range(30):
    publish(f"a{name}")
kept = publish("kept")
overlay(registry.home)
states = []
for number in range(30):
    artifact = registry.resolve(f"a{number}")
    child = os.fork()
    if child == 0:
        sys.addaudithook(die_at(number + 1))
        registry.remove(artifact)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    listed = artifact in registry.list()
    forgotten = [one.digest for one in registry.forgotten()] == [artifact.digest]
    if listed or forgotten:
        assert registry.rebuild().broken == []
        registry.verify(artifact)
        registry.remove(artifact)
    else:
        gc.carry_out(gc.plan(registry))
    assert not artifact.path.exists(), (number, listed, forgotten)
    states.append([os.WIFSIGNALED(status), listed, forgotten])
    if not os.WIFSIGNALED(status):
        break
gc.carry_out(gc.plan(registry))
assert list(registry.staging.iterdir()) == []
registry.verify(kept)
assert [one.title for one in registry.list() if one.name == "kept"] == [kept.title]
say(states)
""")
    assert [True, True, False] in found
    assert [True, False, False] in found
    assert [False, False, False] in found


def test_another_users_stays_whole_and_the_reason_is_said(in_namespace) -> None:
    found = in_namespace("""
mine, yours, inside = publish("mine"), publish("yours"), publish("inside")
for path in (registry.home, *registry.home.rglob("*")):
    os.chown(path, 12345, 12345)
os.chown(yours.path, 0, 0)
os.chown(inside.path / "sub", 0, 0)
say([as_user(lambda: remove(mine, yours, inside)), str(yours.path), str(inside.path / "sub")])
""")
    did, yours, inside = found
    assert did["removed"] == ["checkpoint/mine@1"]
    assert did["listed"] == ["checkpoint/inside@1", "checkpoint/yours@1"]
    said = {where: what for what, where, todo in did["failed"] if "owner" in todo}
    assert set(said) == {yours, inside}
    assert all("permission denied" in what for what in said.values())


def test_a_name_that_may_not_be_changed_keeps_its_artifact(in_namespace) -> None:
    """Of a directory with the sticky bit, such as /tmp, one user's entries are not another's."""
    found = in_namespace("""
yours = publish("yours")
for path in (registry.home, *registry.home.rglob("*")):
    os.chown(path, 12345, 12345)
for path in (yours.path, yours.path.parent):
    os.chown(path, 0, 0)
yours.path.parent.chmod(0o1777), yours.path.chmod(0o777)
did = as_user(lambda: remove(yours))
registry.verify(yours)
say(did)
""")
    assert found["listed"] == ["checkpoint/yours@1"]
    assert "not permitted" in found["failed"][0][0]


def test_what_has_a_disk_mounted_in_it_stays(in_namespace) -> None:
    found = in_namespace("""
top_one, below, plain = publish("top"), publish("below"), publish("plain")
mount("tmpfs", top_one.path)
other = mount("tmpfs", below.path / "sub")
(other / "precious").write_text("of another disk")
did = remove(top_one, below, plain)
say([did, (other / "precious").exists(), str(top_one.path), str(other)])
""")
    did, precious, *where = found
    assert did["removed"] == ["checkpoint/plain@1"]
    assert did["listed"] == ["checkpoint/below@1", "checkpoint/top@1"]
    assert [one[1] for one in did["failed"]] == where
    assert all("busy" in what and "unmount" in todo for what, _, todo in did["failed"])
    assert precious


def test_what_is_immutable_stays(in_namespace) -> None:
    found = in_namespace("""
artifact = publish()
change = lambda how: subprocess.run(["chattr", how, str(artifact.path)], capture_output=True)
if change("+i").returncode:
    say(None)
else:
    try:
        say([remove(artifact), str(artifact.path)])
    finally:
        change("-i")
""")
    if found is None:
        pytest.skip("no immutable attribute on this file system")
    did, path = found
    assert did["listed"] == ["checkpoint/a@1"]
    assert did["failed"][0][1] == path


def test_leftovers_of_another_user_stop_neither_gc_nor_a_run(in_namespace) -> None:
    found = in_namespace("""
publish()
for path in (registry.home, *registry.home.rglob("*")):
    os.chown(path, 12345, 12345)
for name, mode in (("1-dead", 0o755), ("2-hidden", 0o700)):
    (registry.staging / name).mkdir()
    (registry.staging / name / "x").write_text("x")
    (registry.staging / name).chmod(mode)
(registry.staging / "3-mine").mkdir()
os.chown(registry.staging / "3-mine", 12345, 12345)
swept = as_user(lambda: [path.name for path in registry.sweep()])
say([swept, as_user(lambda: remove())])
""")
    swept, did = found
    assert swept == ["3-mine"]
    assert len(did["failed"]) == 1
    assert did["failed"][0][1].endswith("/staging/1-dead")
    assert did["listed"] == ["checkpoint/a@1"]


def _removed_until(number: int, registry: Registry, artifact: Artifact) -> int:
    """How a process ends that removes an artifact and is killed before its operation `number`."""
    child = os.fork()
    if child == 0:
        count = 0

        def look(event: str, _: object) -> None:
            nonlocal count
            if event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "sqlite3.connect"):
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(look)
            registry.remove(artifact)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_kill_at_any_moment_of_a_removal(registry, publish) -> None:
    for number in range(1, 40):
        artifact = publish("corpus", f"victim{number}")
        kept = publish("corpus", "kept")
        ended = _removed_until(number, registry, artifact)
        fresh = Registry.open(registry.home)
        listed = artifact in fresh.list()
        known = listed or [one.digest for one in fresh.forgotten()] == [artifact.digest]
        if known:
            assert fresh.rebuild().broken == []
            fresh.verify(artifact)
            fresh.remove(artifact)
        carry_out(plan(fresh))
        assert list(fresh.staging.iterdir()) == []
        assert not artifact.path.exists()
        assert fresh.list() == [kept]
        fresh.remove(kept)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    else:
        pytest.fail("a removal takes fewer operations than this")
