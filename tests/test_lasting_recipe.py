"""Recipes from pipes, for ranks and for the command that resumes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warmed

from bc2.errors import RecipeError
from bc2.lasting_recipe import lasting_source
from bc2.recipe import load
from bc2.registry import Registry

BC2 = [sys.executable, "-P", "-m", "bc2"]


TEXT = """\
description = "from a pipe"

[model]
vocab_size = 512
hidden_size = 64
intermediate_size = 128
num_layers = 2
num_heads = 4
"""


def piped(text: str) -> str:
    ours, theirs = os.pipe()
    os.write(theirs, text.encode())
    os.close(theirs)
    return f"/dev/fd/{ours}"


def test_a_copy_is_the_recipe(tmp_path: Path) -> None:
    source = piped(TEXT)
    recipe = load(source)
    copy = lasting_source(recipe, source, tmp_path / "recipes")
    assert load(copy).resolved() == recipe.resolved()
    assert load(copy).name == "pipe"
    assert lasting_source(recipe, source, tmp_path / "recipes") == copy
    assert Path(copy).is_relative_to(tmp_path / "recipes")


def test_a_file_is_its_own(tmp_path: Path) -> None:
    assert lasting_source(load("tiny"), "tiny", tmp_path / "recipes") == "tiny"
    assert not (tmp_path / "recipes").exists()


def test_a_base_from_a_pipe_cannot_be_kept(tmp_path: Path) -> None:
    base = piped(TEXT)
    (tmp_path / "r.toml").write_text(f'base = "{base}"\n')
    with pytest.raises(RecipeError, match="a base that can be read only once"):
        lasting_source(load(tmp_path / "r.toml"), str(tmp_path / "r.toml"), tmp_path)


def test_ranks_that_others_start_need_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    source = piped(TEXT)
    with pytest.raises(RecipeError, match="only one of the ranks can read this"):
        lasting_source(load(source), source, tmp_path)


def test_ranks_read_what_their_launcher_was_piped(small: Path) -> None:
    run = warmed.run(
        [*BC2, "pretrain", "-", "--nproc", "2", "--quiet"], cwd=small, text=True,
        input=(small / "small.toml").read_text(), capture_output=True, children=True, timeout=400,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (made,) = Registry.open(small / "home").list(kind="checkpoint", name="small", limit=1)
    assert run.stdout == f"{made.ref}\n"


def test_the_command_that_resumes_has_the_recipe(small: Path) -> None:
    recipe = (small / "small.toml").read_text()
    words = ["pretrain", "/dev/stdin", "--set", "pretrain.length=150 steps"]
    with warmed.Popen(
        [*BC2, *words], cwd=small, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as run:  # fmt: skip
        run.stdin.write(recipe)
        run.stdin.close()
        run.stdin = None
        until = time.monotonic() + 200
        while not list((small / "home").glob("runs/*/metrics.jsonl")):
            assert run.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        run.terminate()
        _, said = run.communicate(timeout=200)
    assert run.returncode == 143, said
    match = re.search("go on with: (bc2 .*)", said)
    assert match, said
    _, verb, source, *rest = shlex.split(match[1])
    assert (verb, rest) == ("pretrain", words[2:])
    assert Path(source).read_text() == recipe
    # As a person types it, from wherever.
    again = warmed.run(
        [*BC2, verb, source, "--set", "pretrain.length=150 steps", "--quiet"], cwd="/", text=True,
        capture_output=True, timeout=400,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert re.search("step [1-9]", again.stderr)
    (made,) = Registry.open(small / "home").list(kind="checkpoint", name="small", limit=1)
    assert made.position.step == 150
