"""A home that bc2 0.1.0 made, before there were roles and certificates, is a home of today.

`golden/registry-0.1.tar.xz` holds kept.toml, its text, and the home after `bc2 pretrain
kept.toml`, `bc2 verify resume kept.toml --steps 4 --kills 1` and `bc2 registry tag
checkpoint/kept@6 best` (on a CPU in fp32; the logs of the run are left out).
"""

from __future__ import annotations

import json
import tarfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bc2.cli import main
from bc2.registry import Registry
from bc2.registry.importing import import_artifact

ARCHIVE = Path(__file__).parents[1] / "golden" / "registry-0.1.tar.xz"

#: Newest first: title, ref, role.
MADE = [
    ("scores/resume-kept", "82640b2a88a06719", None),
    ("checkpoint/kept@6", "910c94d4187853ea", "base"),
    ("checkpoint/kept@3", "e0a1126c7e45ec6b", "base"),
    ("tokens/kept", "b3c326fe2dc206af", None),
    ("tokenizer/kept", "c229a01e0a46fbf5", None),
    ("corpus/kept", "c1c04ef8f854d6f3", None),
]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The registry of the archive, in a working directory with kept.toml and its text."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BC2_HOME", "home")
    return Registry.open()


def told(*args: str) -> Any:
    """What `bc2 registry` answers with --json."""
    done = CliRunner().invoke(import_module("bc2.commands.registry").app, [*args, "--json"])
    assert done.exception is None, done.output
    return json.loads(done.stdout)


def pretrain(capfd: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """What `bc2 pretrain kept.toml` answers, and what it says on stderr."""
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "kept.toml", "--json"])
    out, err = capfd.readouterr()
    assert left.value.code in (None, 0), err
    return json.loads(out), err


def made(registry: Registry) -> list[tuple[str, str, str | None]]:
    return [(artifact.title, artifact.ref, artifact.role) for artifact in registry.list()]


def test_it_lists_resolves_and_shows(earlier: Registry) -> None:
    assert made(earlier) == MADE
    for ref in ("checkpoint/kept", "checkpoint/kept@6", "checkpoint/kept:best", "910c94d4"):
        assert earlier.resolve(ref).ref == "910c94d4187853ea"
    assert earlier.newest("checkpoint", ("base", "chat")).title == "checkpoint/kept@6"
    assert earlier.resolve("resume-kept", "scores").manifest.facts["holds"] is True
    shown = told("show", "checkpoint/kept@3")
    assert (shown["role"], shown["format"], shown["finished"]) == ("base", 1, False)
    listed = told("list", "--role", "base")["artifacts"]
    assert [one["ref"] for one in listed] == ["910c94d4187853ea", "e0a1126c7e45ec6b"]


def test_its_lineage_is_traced_and_every_byte_verified(earlier: Registry) -> None:
    found = told("lineage", "resume-kept")
    assert [node["title"] for node in found["nodes"]] == [
        "scores/resume-kept", "checkpoint/kept@6", "tokens/kept", "tokenizer/kept", "corpus/kept",
    ]  # fmt: skip
    answer = told("verify")
    assert (answer["checked"], answer["broken"]) == (6, 0)


def test_its_index_is_made_anew_from_its_manifests(earlier: Registry) -> None:
    before = earlier.list()
    earlier.index_file.unlink()
    assert told("rebuild")["artifacts"] == 6
    assert Registry.open().list() == before


def test_its_artifacts_are_copied_to_the_byte(earlier: Registry, tmp_path: Path) -> None:
    other = Registry.open(tmp_path / "other")
    for artifact in earlier.list():
        copy = import_artifact(other, artifact.path)
        for path in ("manifest.json", *artifact.files()):
            assert (copy.path / path).read_bytes() == (artifact.path / path).read_bytes()
    assert made(other) == MADE


def test_its_recipe_makes_nothing_again(earlier: Registry, capfd) -> None:
    answer, _ = pretrain(capfd)
    assert (answer["made"], answer["ref"]) == (False, "910c94d4187853ea")
    assert made(earlier) == MADE


def test_its_unfinished_run_is_gone_on_with(earlier: Registry, capfd) -> None:
    key = earlier.resolve("checkpoint/kept@3").key
    earlier.untag(earlier.resolve("checkpoint/kept@6"), "best")
    for ref in ("resume-kept", "checkpoint/kept@6"):
        earlier.remove(earlier.resolve(ref))
    answer, said = pretrain(capfd)
    assert answer["made"] is True
    assert "going on from step 3 of 6" in said
    # What is made after it is new, and under the same key.
    end = earlier.resolve(answer["ref"])
    assert (end.key, end.role, end.manifest.role) == (key, "base", "base")
    assert [one for one in made(earlier) if one[1] != end.ref] == MADE[2:]
