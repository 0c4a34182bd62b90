"""What every command of the table promises: its options, its streams, its exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bc2 import cli
from bc2.registry import Registry

Path_ = tuple[str, ...]


def walk() -> Iterator[tuple[Path_, Any]]:
    """Every command as it is typed, with its click command."""
    for name, verb in cli.VERBS.items():
        module = importlib.import_module(f"bc2.commands.{verb.module}")
        command = typer.main.get_command(module.app)
        below = getattr(command, "commands", None)
        if below is None:
            yield (name,), command
        else:
            yield from (((name, each), one) for each, one in below.items())


COMMANDS = dict(walk())
MAKERS = [
    (name, each) if each else (name,) for name, verb in cli.VERBS.items() for each in verb.makes
]


def flags(path: Path_) -> set[str]:
    return {flag for param in COMMANDS[path].params for flag in param.opts}


def ends(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


def test_the_table_names_commands_that_are_there() -> None:
    assert len(COMMANDS) > 20
    assert set(MAKERS) <= set(COMMANDS)


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_every_command_has_json(path: Path_) -> None:
    assert "--json" in flags(path)


@pytest.mark.parametrize("path", MAKERS, ids=" ".join)
def test_what_ends_in_an_artifact_has_quiet(path: Path_) -> None:
    assert {"--json", "--quiet"} <= flags(path)


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_an_unknown_option_is_wrong_usage(path: Path_, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ends([*path, "--no-such-option"], capsys)
    assert (code, out) == (2, "")
    assert "--no-such-option" in err


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_a_missing_argument_is_wrong_usage(path: Path_, capsys: pytest.CaptureFixture[str]) -> None:
    needed = [p for p in COMMANDS[path].params if p.required]
    if not needed:
        # Then too many arguments are wrong, unless it takes any number of them.
        if any(p.nargs == -1 for p in COMMANDS[path].params):
            return
        code, out, err = ends([*path, *(["one-too-many"] * 9)], capsys)
        assert "unexpected extra argument" in err.lower()
    else:
        code, out, err = ends([*path, "--json"] if "--json" in flags(path) else [*path], capsys)
        assert "Missing" in err
    assert (code, out) == (2, "")


#: The commands that find what `prepared_home` and one short run have made.
FOUND = [
    ["data", "prep", "small.toml"],
    ["data", "tokenize", "small.toml"],
    ["train-tokenizer", "small.toml"],
    ["pretrain", "small.toml", "--set", "pretrain.length=6 steps"],
]


def test_stdout_is_the_result_alone(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in FOUND:
        code, out, err = ends([*command, "--quiet"], capsys)
        assert code == 0, err
        (ref,) = out.splitlines()
        made = Registry.open().resolve(ref)
        code, out, err = ends([*command, "--json"], capsys)
        found = json.loads(out)
        assert (code, found["digest"], found["made"]) == (0, made.digest, False)
        assert f"{made.title} is registered already" in err
    code, out, err = ends(["registry", "tag", "checkpoint/small", "good", "--quiet"], capsys)
    assert (code, out.split()) == (0, [made.ref])


def test_the_shell_completes_verbs_and_recipes(tmp_path: Path) -> None:
    def complete(words: str) -> set[str]:
        run = subprocess.run(
            [sys.executable, "-P", "-m", "bc2"], capture_output=True, text=True, check=True,
            cwd=tmp_path,
            env={"_BC2_COMPLETE": "complete_bash", "COMP_WORDS": words,
                 "COMP_CWORD": str(len(words.split(" ")) - 1), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        return set(run.stdout.split())

    (tmp_path / "mine.toml").write_text("")
    assert complete("bc2 pre") == {"pretrain"}
    assert complete("bc2 data to") == {"tokenize"}
    assert complete("bc2 pretrain ti") == {"tiny"}
    assert complete("bc2 pretrain mi") == {"mini", "mine.toml"}
