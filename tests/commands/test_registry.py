from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bc2.errors import IntegrityError, RefError, RunFailed, UsageError
from bc2.registry import Draft, Position, Registry, queries, stage_key


@pytest.fixture
def registry(tmp_path: Path, monkeypatch) -> Registry:
    monkeypatch.delenv("BC2_REGISTRY_URL", raising=False)
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return Registry.open()


def publish(registry: Registry, kind, name: str, *parents, step: int | None = None, **options):
    digests = tuple(parent.digest for parent in parents)
    key = stage_key(kind, 1, {"name": name}, digests)
    position = None if step is None else Position(step, step * 10)
    draft = Draft(kind, name, key, digests, position=position, **options)
    with registry.stage(draft) as staged:
        (staged.path / "data.bin").write_bytes(f"{kind}{name}{step}".encode())
        return staged.publish()


@pytest.fixture
def house(registry):
    text = publish(registry, "corpus", "tiny", facts={"documents": 3})
    base = publish(registry, "checkpoint", "run", text, step=10)
    return text, base


def run(*args: object):
    app = import_module("bc2.commands.registry").app
    return CliRunner().invoke(app, [str(arg) for arg in args])


def value(*args: object):
    """The one JSON object that a command prints with --json."""
    done = run(*args, "--json")
    assert done.exception is None, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_list(house) -> None:
    text, base = house
    assert [one["ref"] for one in value("list")["artifacts"]] == [base.ref, text.ref]
    assert value("list", "--kind", "corpus")["artifacts"][0]["digest"] == text.digest
    assert value("list", "--name", "none")["artifacts"] == []
    assert run("list", "-q").stdout.split() == [base.ref, text.ref]
    lines = run("list").stdout.splitlines()
    assert len(lines) == 3
    assert base.ref in lines[1]
    assert "checkpoint" in lines[1]
    assert isinstance(run("list", "--kind", "corpse").exception, UsageError)


def test_list_shows_the_newest_and_says_how_many_more_there_are(registry, house) -> None:
    with registry.index.writing() as connection:
        for number in range(60):
            # Straight into the index: a listing looks at nothing else.
            more = replace(house[0], digest=f"{number:064x}", created=f"3000-01-01 {number:02}")
            queries.insert(connection, more)
    done = run("list")
    assert len(done.stdout.splitlines()) == 51
    assert done.stderr == "12 older ones are not shown: --limit 0 lists all 62\n"
    found = value("list")
    assert (len(found["artifacts"]), found["total"]) == (50, 62)
    newest = [one.ref for one in registry.list()]
    assert run("list", "-q", "--limit", 3).stdout.split() == newest[:3]
    every = run("list", "-q", "--limit", 0)
    assert (every.stdout.split(), every.stderr) == (newest, "")
    assert run("list", "-q", "--limit", 10**20).stdout == every.stdout
    filtered = run("list", "-q", "--kind", "checkpoint", "--limit", 1)
    assert (filtered.stdout.split(), filtered.stderr) == ([house[1].ref], "")
    assert run("list", "--limit", -1).exit_code == 2


def test_roles(registry, house) -> None:
    text, base = house
    chat = publish(registry, "checkpoint", "talk", base, role="chat")
    assert [one["role"] for one in value("list")["artifacts"]] == ["chat", "base", None]
    assert run("list", "--role", "base", "-q").stdout.split() == [base.ref]
    none = f"none of the 3 artifacts in {registry.home} matches"
    assert run("list", "--role", "reward").stdout == f"{none} --role reward\n"
    filtered = run("list", "--kind", "corpus", "--name", "talk", "--role", "chat").stdout
    assert filtered == f"{none} --kind corpus --name talk --role chat\n"
    header, first, *_ = run("list").stdout.splitlines()
    assert header.split()[:4] == ["ref", "kind", "name", "role"]
    assert first.split()[:4] == [chat.ref, "checkpoint", "talk", "chat"]
    assert isinstance(run("list", "--role", "bass").exception, UsageError)
    assert (value("show", "talk")["role"], value("show", "run")["role"]) == ("chat", "base")
    assert "role      base" in run("show", "run").stdout
    assert value("show", text.ref)["role"] is None
    assert not [line for line in run("show", text.ref).stdout.splitlines() if line[:4] == "role"]


def test_a_run_that_finished_since_is_told_from_one_that_did_not(registry, house) -> None:
    publish(registry, "checkpoint", "over", step=1, finished=False)
    publish(registry, "checkpoint", "going", step=1, finished=False)
    publish(registry, "checkpoint", "over", step=2)
    rows = run("list", "--limit", 3).stdout.splitlines()[1:]
    assert ["earlier" in row for row in rows] == [False, False, True]
    assert ["unfinished" in row for row in rows] == [False, True, False]
    publish(registry, "checkpoint", "over", step=3, finished=False)
    # Also where the finished one is not shown.
    assert "earlier" in run("list", "--limit", 1).stdout


def test_list_of_nothing_makes_nothing(registry) -> None:
    nothing = f"nothing is registered in {registry.home}\n"
    assert run("list").stdout == run("list", "--role", "chat").stdout == nothing
    assert value("list")["artifacts"] == []
    assert not registry.home.exists()


def test_show(house) -> None:
    text, base = house
    found = value("show", text.ref)
    assert found["digest"] == text.digest
    assert found["facts"] == {"documents": 3}
    assert found["children"] == [base.digest]
    assert found["files"][0]["path"] == "data.bin"
    assert found["size"] == found["files"][0]["size"]
    assert found["environment"]["python"]
    shown = run("show", "run").stdout
    assert base.digest in shown
    assert "step 10, 100 tokens" in shown
    assert isinstance(run("show", "rnu").exception, RefError)
    (base.path / "manifest.json").write_bytes(b"{}")
    assert isinstance(run("show", "run").exception, IntegrityError)


def test_lineage(house) -> None:
    text, base = house
    assert value("lineage", "run")["edges"] == [{"child": base.digest, "parent": text.digest}]
    assert value("lineage", "tiny", "--down")["nodes"][1]["digest"] == base.digest
    assert f'"{text.ref}" -> "{base.ref}"' in run("lineage", "run", "--dot").stdout
    tree = run("lineage", "run").stdout.splitlines()
    assert "checkpoint/run@10" in tree[0]
    assert "corpus/tiny" in tree[1]
    assert run("lineage", "run", "-q").stdout.split() == [base.ref, text.ref]
    assert isinstance(run("lineage", "run", "--dot", "--json").exception, UsageError)


def test_verify_names_the_file_and_still_reports(house) -> None:
    text, base = house
    assert value("verify") == {
        "checked": 2,
        "broken": 0,
        "artifacts": [
            {"ref": one.ref, "title": one.title, "ok": True, "error": None, "where": None,
             "parents_not_here": []}
            for one in (base, text)
        ],
    }  # fmt: skip
    (base.path / "data.bin").write_bytes(b"checkpointrun11")
    done = run("verify", "--json")
    assert isinstance(done.exception, IntegrityError)
    assert done.exception.exit_code == 5
    assert done.exception.where == str(base.path / "data.bin")
    found = json.loads(done.stdout)
    assert (found["checked"], found["broken"]) == (2, 1)
    assert run("verify", "tiny").exception is None
    assert isinstance(run("verify", "run").exception, IntegrityError)
    assert run("verify", "-q").stdout.split() == [text.ref]


def test_tag(registry, house) -> None:
    _, base = house
    assert value("tag", "run", "best")["tags"] == ["best"]
    assert registry.resolve("run:best").digest == base.digest
    assert run("tag", "run:best", "good", "-q").stdout.strip() == base.ref
    assert value("tag", "run", "best", "--delete")["tags"] == ["good"]
    assert isinstance(run("tag", "run", "best", "--delete").exception, RefError)
    assert isinstance(run("tag", "run", "a/b").exception, UsageError)


def test_gc_shows_and_then_removes(registry, house) -> None:
    text, _ = house
    for step in (1, 2, 3):
        publish(registry, "checkpoint", "going", text, step=step, finished=False)
    planned = value("gc", "--keep-last", 1)
    assert planned["removed"] == []
    assert {one["title"] for one in planned["would_remove"]} == {
        "checkpoint/going@1",
        "checkpoint/going@2",
    }
    assert len(registry.list()) == 5
    removed = value("gc", "--keep-last", 1, "--yes")["removed"]
    assert [one["title"] for one in removed] == ["checkpoint/going@2", "checkpoint/going@1"]
    assert len(registry.list()) == 3
    assert isinstance(run("gc", "tiny", "--yes").exception, RunFailed)
    assert run("gc", "tiny", "run", "going", "--yes").exception is None
    assert registry.list() == []
    assert "nothing to remove" in run("gc").stdout


def test_gc_ends_in_an_error_where_something_named_stays(registry, house) -> None:
    other = publish(registry, "corpus", "other")
    with house[1].hold():
        done = run("gc", "run", "other", "--yes", "--json")
    assert isinstance(done.exception, RunFailed)
    assert done.exception.where == str(house[1].path)
    said = json.loads(done.stdout)
    assert [one["ref"] for one in said["removed"]] == [other.ref]
    assert [one["ref"] for one in said["kept"]] == [house[1].ref]
    assert len(registry.list()) == 2


def test_what_the_index_forgot_is_said_and_adopted(registry, house) -> None:
    with registry.index.writing() as connection:
        queries.delete(connection, house[1].digest)
    done = run("list", "--json")
    assert json.loads(done.stdout)["total"] == 1
    said = "warning: 1 in place and not in the index (checkpoint/run@10): "
    assert done.stderr == f"{said}`bc2 registry rebuild` adopts them\n"
    cleaned = run("gc", "--yes")
    assert cleaned.exception is None
    assert cleaned.stdout == "nothing to remove\n"
    assert "not in the index; `bc2 registry rebuild` adopts it" in cleaned.stderr
    assert run("rebuild").exception is None
    assert run("list").stderr == ""
    registry.verify(house[1])


def advised(error: BaseException | None) -> list[str]:
    """The command of `bc2 registry` in what an error says to do."""
    assert isinstance(error, IntegrityError)
    command = re.search(r"`bc2 registry ([^`]+)`", error.todo or "")
    assert command is not None, error.todo
    return shlex.split(command[1])


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "forgotten"])
@pytest.mark.parametrize("damage", ["folder", "no manifest", "manifest"])
def test_the_advice_of_verify_and_rebuild_works_to_the_letter(
    registry, house, registered: bool, damage: str
) -> None:
    base = house[1]
    if damage == "folder":
        shutil.rmtree(base.path)
    elif damage == "manifest":
        (base.path / "manifest.json").write_bytes(b"{}")
    else:
        (base.path / "manifest.json").unlink()
    if not registered:
        with registry.index.writing() as connection:
            queries.delete(connection, base.digest)
    asked = run("verify" if registered else "rebuild")
    if not registered and damage == "folder":
        assert asked.exception is None
        return
    done = run(*advised(asked.exception)) if registered else run(*rebuilt_advice(asked))
    assert done.exception is None, done.output
    assert not base.path.exists()
    assert run("verify").exception is None
    assert run("rebuild").exception is None
    assert [artifact.digest for artifact in registry.list()] == [house[0].digest]


def rebuilt_advice(done) -> list[str]:
    """The command in the warnings of `rebuild`, which says what each thing needs."""
    command = re.search(r"`bc2 registry (gc [^`]+)`", done.stderr)
    assert command is not None, done.stderr
    return shlex.split(command[1])


def test_import(registry, house, tmp_path: Path, monkeypatch) -> None:
    text, base = house
    shutil.copytree(base.path, tmp_path / "copy")
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "elsewhere"))
    assert value("import", tmp_path / "copy")["digest"] == base.digest
    assert value("verify")["artifacts"][0]["parents_not_here"] == [text.digest]
    assert "1 parents not here" in run("verify").stdout
    assert "not here" in run("lineage", "run").stdout
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "a").write_text("a")
    assert isinstance(run("import", plain).exception, UsageError)
    assert isinstance(run("import", plain, "--kind", "corpus").exception, UsageError)
    ref = run("import", plain, "--kind", "corpus", "--name", "mine", "-q").stdout.strip()
    assert value("show", ref)["name"] == "mine"
    made = value("import", plain, "--kind", "checkpoint", "--name", "talk", "--role", "chat")
    assert made["role"] == "chat"
    for wrong in ("--kind corpus --name a --role chat", "--role chat"):
        assert isinstance(run("import", plain, *wrong.split()).exception, UsageError)


def test_rebuild(registry, house) -> None:
    before = value("list")
    registry.index_file.unlink()
    assert value("rebuild")["artifacts"] == 2
    assert value("list") == before
    _, base = house
    (base.path / "data.bin").unlink()
    done = run("rebuild", "--json")
    assert isinstance(done.exception, IntegrityError)
    assert json.loads(done.stdout)["broken"][0]["where"] == str(base.path / "data.bin")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["list"], 0),
        (["show", "none"], 4),
        (["list", "--kind", "corpse"], 2),
        (["gc", "tiny", "--yes"], 1),
        (["import", "nowhere", "--kind", "corpus", "--name", "a"], 3),
        (["verify"], 5),
    ],
)
def test_exit_codes(house, capsys, args: list[str], code: int) -> None:
    from bc2.cli import main

    if code == 5:
        (house[0].path / "data.bin").unlink()
    with pytest.raises(SystemExit) as caught:
        main(["registry", *args])
    assert caught.value.code == code
    assert ("error: " in capsys.readouterr().err) == (code != 0)


def test_listing_imports_nothing_heavy(house) -> None:
    # How long it takes is for a benchmark; what would make it slow is known by name.
    script = (
        "import sys\n"
        "from importlib import import_module\n"
        "from typer.testing import CliRunner\n"
        "done = CliRunner().invoke(import_module('bc2.commands.registry').app, ['list', '-q'])\n"
        "assert len(done.stdout.split()) == 2, done.output\n"
        "heavy = 'torch numpy pyarrow daft matplotlib scipy sklearn transformers datasets'\n"
        "assert not set(heavy.split()) & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
