"""`bc2 recipe` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2.cli import main
from bc2.recipe import shipped

CORPUS = """
name = "mine"
[corpus]
heldout_fraction = 0.1
[[corpus.sources]]
name = "docs"
environment = "python-docs"
"""


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["recipe", *args])
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    return said.out, said.err


def test_every_shipped_recipe_is_listed(capsys) -> None:
    names = list(shipped())
    assert {"7b", "tiny"} <= set(names)
    out, _ = run(capsys, "list", "--quiet")
    assert out.split() == names
    listed = json.loads(run(capsys, "list", "--json")[0])["recipes"]
    assert [one["name"] for one in listed] == names
    assert all(one["description"] and one["sections"] for one in listed)
    out, _ = run(capsys, "list")
    assert all(name in out for name in names)


def test_a_recipe_is_checked_with_what_is_set(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(CORPUS)
    checked = json.loads(run(capsys, "check", "mine.toml", "--json")[0])
    assert (checked["recipe"], checked["ok"]) == ("mine", True)
    assert "ok (corpus)" in run(capsys, "check", "mine.toml")[0]
    wrong = ("check", "mine.toml", "--set", "corpus.heldout_fraction=2")
    out, err = run(capsys, *wrong, code=2)
    assert out == ""
    assert "corpus.heldout_fraction" in err


def test_sections_are_checked_against_each_other(capsys) -> None:
    _, err = run(capsys, "check", "tiny", "--set", "pretrain.sequence_length=100_000", code=2)
    assert "sequence_length" in err


def test_a_recipe_without_a_model_has_no_size(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(CORPUS)
    shown = json.loads(run(capsys, "show", "mine.toml", "--json")[0])
    assert shown["corpus"]["heldout_fraction"] == 0.1
    assert "params" not in shown
    assert json.loads(run(capsys, "show", "tiny", "--json")[0])["params"] > 0
