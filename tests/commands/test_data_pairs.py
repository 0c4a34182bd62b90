"""`bc2 data pairs` from the command line: what is printed, found again, and what errors leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bc2.cli import main
from bc2.data.pairs.pairs import Pairs
from bc2.errors import RefError
from bc2.registry import Registry

RECIPE = """
name = "prefer"
[pairs]
heldout_fraction = 0.2
[[pairs.sources]]
name = "web"
path = "web.jsonl"
licence = "CC0"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prefer.toml").write_text(RECIPE)
    rows = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": "no", "id": n} for n in range(40)]
    (tmp_path / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        main([*args])
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    return said.out, said.err


def test_pairs_are_made_once_and_shown(home, capsys):
    out, told = run(capsys, "data", "pairs", "prefer.toml", "--json")
    made = json.loads(out)
    assert made["kind"] == "pairs"
    assert made["made"] is True
    assert made["facts"]["formats"] == {"web": {"pairs": 40}}
    assert made["facts"]["licences"] == {"web": "CC0"}
    assert "source web: 40 pairs of 40 comparisons (pairs: 40)" in told
    assert "source web: not read: id" in told
    pairs = Pairs.open(Path(made["path"]))
    assert pairs.count("train") + pairs.count("heldout") == 40
    out, told = run(capsys, "data", "pairs", "prefer.toml", "--quiet")
    assert out.strip() == made["ref"]
    assert "registered already" in told


def test_a_bad_row_leaves_nothing(home, capsys):
    with (home / "web.jsonl").open("a") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    out, told = run(capsys, "data", "pairs", "prefer.toml", code=3)
    assert out == ""
    assert "the same answer" in told
    assert "web.jsonl:41" in told
    run(capsys, "registry", "show", "pairs/prefer", code=4)


def test_a_range_that_falls_is_refused(home, capsys):
    _, told = run(
        capsys, "data", "pairs", "prefer.toml", "--set", "pairs.sources.0.score_range=[1, 0]",
        code=2,
    )  # fmt: skip
    assert "score_range is [lowest, highest]" in told


def test_pairs_are_no_chats_and_the_message_says_what_reads_them(home, capsys):
    run(capsys, "data", "pairs", "prefer.toml")
    with pytest.raises(RefError, match="'pairs/prefer' is a pairs, and a chats is needed") as e:
        Registry.open().resolve("pairs/prefer", "chats")
    assert e.value.todo == "pairs are what `bc2 reward` and `bc2 dpo` read to learn from"
