"""`bc2 data chats` from the command line: what is printed, found again, and what errors leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2.cli import main
from bc2.data.chats.chats import Chats

RECIPE = """
name = "talk"
[chats]
heldout_fraction = 0.2
[[chats.sources]]
name = "web"
path = "web.jsonl"
licence = "CC0"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.toml").write_text(RECIPE)
    rows = [{"instruction": f"say {n}", "output": f"{n}", "id": n} for n in range(40)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*args])
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    return said.out, said.err


def test_chats_are_made_once_and_shown(home, capsys):
    out, told = run(capsys, "data", "chats", "talk.toml", "--json")
    made = json.loads(out)
    assert made["kind"] == "chats"
    assert made["made"] is True
    assert made["facts"]["formats"] == {"web": {"alpaca": 40}}
    assert "source web: 40 conversations (alpaca: 40)" in told
    assert "source web: not read: id" in told
    chats = Chats.open(Path(made["path"]))
    assert chats.count("train") + chats.count("heldout") == 40
    out, told = run(capsys, "data", "chats", "talk.toml", "--quiet")
    assert out.strip() == made["ref"]
    assert "registered already" in told
    out, _ = run(capsys, "registry", "show", "chats/talk")
    assert "{'web': {'alpaca': 40}}" in out


def test_a_bad_row_leaves_nothing(home, capsys):
    with (home / "web.jsonl").open("a") as file:
        file.write('{"instruction": "a"}\n')
    out, told = run(capsys, "data", "chats", "talk.toml", code=3)
    assert out == ""
    assert "`output` is missing" in told
    assert "web.jsonl:41" in told
    run(capsys, "registry", "show", "chats/talk", code=4)


def test_settings_that_are_wrong_name_the_nearest(home, capsys):
    _, told = run(capsys, "data", "chats", "talk.toml", "--set", "chats.heldout=0.1", code=2)
    assert "heldout_fraction" in told
    _, told = run(capsys, "data", "chats", "talk.toml", "--set", "chats.malformed=drop", code=2)
    assert "skip" in told
