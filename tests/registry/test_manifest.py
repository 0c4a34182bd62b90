from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from bc2.errors import IntegrityError, RunFailed
from bc2.registry import Registry
from bc2.registry import manifest as mf


def test_every_changed_byte_of_a_manifest_is_found(publish, tmp_path: Path) -> None:
    artifact = publish(facts={"licence": "CC-BY-SA 四"}, files={"a": b"1"})
    raw = (artifact.path / "manifest.json").read_bytes()
    rng = random.Random(0)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1 << rng.randrange(8)
        (tmp_path / "manifest.json").write_bytes(changed)
        with pytest.raises(IntegrityError, match=r"manifest\.json"):
            mf.read(tmp_path)


@pytest.mark.parametrize("change", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest(tmp_path: Path, change: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(change)
    with pytest.raises(IntegrityError):
        mf.read(tmp_path)


def test_a_cut_or_longer_manifest_is_found(publish, tmp_path: Path) -> None:
    raw = (publish().path / "manifest.json").read_bytes()
    for changed in (raw[:-1], raw[: len(raw) // 2], raw + b" "):
        (tmp_path / "manifest.json").write_bytes(changed)
        with pytest.raises(IntegrityError):
            mf.read(tmp_path)


def test_an_intact_manifest_of_another_artifact_is_found(publish) -> None:
    one, other = publish(seed=1), publish(seed=2)
    shutil.copy(other.path / "manifest.json", one.path / "manifest.json")
    with pytest.raises(IntegrityError, match=other.ref):
        _ = one.manifest


def resealed(artifact, **changes) -> bytes:
    data = json.loads((artifact.path / "manifest.json").read_bytes())
    data |= changes
    data["digest"] = mf.digest_of(data)
    data["seal"] = mf.seal_of(data)
    return mf.render(data)


def test_a_well_sealed_manifest_cannot_leave_its_directory(publish, tmp_path: Path) -> None:
    artifact = publish()
    entry = {"path": "../secret", "size": 1, "sha256": "0" * 64}
    for changes in (
        {"files": [entry]},
        {"files": [{**entry, "path": "/etc/passwd"}]},
        {"name": "../../elsewhere"},
    ):
        (tmp_path / "manifest.json").write_bytes(resealed(artifact, **changes))
        with pytest.raises(IntegrityError):
            mf.read(tmp_path)
    (tmp_path / "manifest.json").write_bytes(resealed(artifact, name="fine"))
    assert mf.read(tmp_path).name == "fine"


def test_a_newer_format_says_so(publish, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(resealed(publish(), format=3))
    with pytest.raises(RunFailed, match="update bc2"):
        mf.read(tmp_path)


def test_recorded_values_are_not_identity(registry, publish, tmp_path: Path) -> None:
    artifact = publish(facts={"loss": 1.0})
    manifest = artifact.manifest
    assert manifest.facts == {"loss": 1.0}
    assert manifest.recipe == {"seed": 0}
    assert manifest.code["bc2"]
    assert {"torch", "sentencepiece"} <= set(manifest.environment["packages"])
    again = publish(facts={"loss": 2.0})
    assert again == artifact
    assert again.manifest.facts == {"loss": 1.0}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "tokens"},
        {"name": "other"},
        {"seed": 1},
        {"step": 7},
        {"finished": False},
        {"files": {"data.bin": b"other"}},
        {"files": {"other.bin": b"corpus tiny 0 None", "sub/more": b""}},
    ],
)
def test_identity_is_in_the_digest(publish, change: dict) -> None:
    assert publish().digest != publish(**change).digest


def test_a_role_is_recorded_and_not_identity(registry, publish, tmp_path: Path) -> None:
    chat = publish("checkpoint", "run", step=1, role="chat")
    other = publish("checkpoint", "run", step=1, home=Registry.open(tmp_path / "other"))
    assert chat.digest == other.digest
    assert (chat.role, other.role) == ("chat", "base")
    assert (chat.manifest.role, other.manifest.role) == ("chat", None)
    assert publish("checkpoint", "run", step=1, role="reward") == chat
    assert publish("corpus", "a").role is None


def test_a_manifest_is_spelled_as_it_was_whether_it_has_a_role_or_not(publish) -> None:
    for role in (None, "merged"):
        artifact = publish("checkpoint", "run", seed=1 if role else 2, role=role)
        raw = (artifact.path / "manifest.json").read_bytes()
        assert mf.to_bytes(mf.read(artifact.path)) == raw
        assert (b'"role"' in raw) == bool(role)


def test_a_manifest_is_of_the_oldest_format_that_can_say_it(publish) -> None:
    """So that a bc2 from before roles reads what it can, and asks to be updated for the rest."""
    formats = {
        one.title: one.manifest.format
        for one in (
            publish("corpus", "a"),
            publish("checkpoint", "old"),
            publish("checkpoint", "new", role="base"),
            publish("certificate", "a"),
        )
    }
    assert formats == {
        "corpus/a": 1, "checkpoint/old": 1, "checkpoint/new": 2, "certificate/a": 2,
    }  # fmt: skip


@pytest.mark.parametrize("role", ["chat", "bass", 1])
def test_a_well_sealed_manifest_with_a_role_that_cannot_be(publish, tmp_path: Path, role) -> None:
    kind = "corpus" if role == "chat" else "checkpoint"
    (tmp_path / "manifest.json").write_bytes(resealed(publish(kind), role=role))
    with pytest.raises(IntegrityError):
        mf.read(tmp_path)
