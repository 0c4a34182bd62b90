"""`bc2 data` from the command line: what is printed, exit codes, what wrong input leaves behind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import zstandard

from bc2.cli import main
from bc2.registry import Draft, Registry

RECIPE = """
name = "small"
[corpus]
heldout_fraction = 0.1
[[corpus.sources]]
name = "web"
path = "web"
lang = "en"
licence = "CC0"
[corpus.normalise]
[corpus.passages]
[corpus.near]
[corpus.safety]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(RECIPE)
    (tmp_path / "web").mkdir()
    rng = random.Random(0)
    words = [f"word{i}" for i in range(300)]
    sentence = lambda: " ".join(rng.choices(words, k=10)).capitalize() + "."  # noqa: E731
    texts = [" ".join(sentence() for _ in range(8)) for _ in range(60)]
    texts += [texts[0], texts[1].replace("word", "term", 1), f"Mail a.b@site.org. {texts.pop()}"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "web" / "a.jsonl").write_text(lines)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["data", *args])
    said = capsys.readouterr()
    assert caught.value.code == code, said.err
    return said.out, said.err


def test_prep_then_report(home, capsys):
    out, _ = run(capsys, "prep", "small.toml", "--json", "--keep-dropped", "gone")
    made = json.loads(out)
    assert made["kind"] == "corpus"
    assert made["facts"]["read"]["documents"] == 62
    assert {path.name for path in (home / "gone").iterdir()} >= {"exact", "near", "safety"}
    _, err = run(capsys, "prep", "small.toml", "--quiet")
    assert "registered already" in err
    out, _ = run(capsys, "report", "corpus/small", "--json")
    told = json.loads(out)
    assert told["total"]["documents"] == 60
    assert told["unlicensed"] == []
    out, err = run(capsys, "report", "--page", "page.html", "--markdown", "card.md")
    assert "near" in out
    assert "CC0" in (home / "card.md").read_text()
    page = (home / "page.html").read_text()
    assert "near_duplicate" in page
    assert "://" not in page.replace("http://www.w3.org", "")
    out, _ = run(capsys, "report", "--examples")
    assert "a.jsonl:61" in out
    assert "a.b@site.org" not in json.dumps(made)


def test_what_took_how_long_is_told_and_is_no_part_of_the_corpus(home, capsys):
    out, _ = run(capsys, "prep", "small.toml", "--json")
    made = json.loads(out)
    steps = {row["step"]: row for row in made["facts"]["timings"]}
    assert list(steps) == [
        "reading", "normalise", "exact", "passages", "near", "safety", "parts", "writing",
    ]  # fmt: skip
    assert steps["reading"]["bytes"] == made["facts"]["read"]["bytes"]
    assert all(row["seconds"] >= row["settling"] >= 0 for row in steps.values())
    assert {name for name, row in steps.items() if row["settling"]} >= {"exact", "passages", "near"}
    for file in Path(made["path"]).glob("*.json"):
        assert ("timings" in file.read_text()) == (file.name == "manifest.json")
    shown, _ = run(capsys, "prep", "small.toml")
    assert "Seconds of work" in shown
    again, _ = run(capsys, "prep", "small.toml", "--json", "--fresh")
    assert json.loads(again)["digest"] == made["digest"]
    out, _ = run(capsys, "report", "--json", "--markdown", "card.md", "--page", "page.html")
    assert [row["step"] for row in json.loads(out)["timings"]] == list(steps)
    assert "| writing |" in (home / "card.md").read_text()
    assert "Seconds of work" in (home / "page.html").read_text()


def test_matches_with_benchmarks_are_shown(home, capsys):
    run(capsys, "prep", "small.toml", "--quiet")
    run(capsys, "report", "--contamination", code=3)
    rows = [json.loads(line)["text"] for line in (home / "web" / "a.jsonl").open()]
    questions = [" ".join(text.split()[20:40]) for text in rows[:4]]
    lines = "".join(json.dumps({"q": question}) + "\n" for question in questions)
    (home / "quiz.jsonl").write_text(lines)
    table = '[corpus.decontaminate]\nlisted = 1\naction = "report"\n'
    table += '[[corpus.decontaminate.benchmarks]]\nname = "quiz"\npath = "quiz.jsonl"\n'
    (home / "small.toml").write_text(f'{RECIPE}{table}fields = ["q"]\n')
    run(capsys, "prep", "small.toml", "--quiet")
    out, _ = run(capsys, "report", "--contamination", "--json")
    told = json.loads(out)
    assert told["pairs"] == len(told["matches"]) + told["not_listed"] >= 4
    found = {match["item"].rpartition(":")[2]: match for match in told["matches"]}
    assert sorted(found) == ["1", "2", "3", "4"]
    for number, question in enumerate(questions, 1):
        match = found[str(number)]
        assert (match["row"], match["how"], match["done"]) == (number, "text", "reported")
        assert match["text"][slice(*match["shared"])] == question.rstrip(".")
        assert match["benchmark_text"] == question
    out, _ = run(capsys, "report", "--contamination")
    assert out.startswith(f"Matches with benchmarks: {told['pairs']}")
    assert "web a.jsonl:3" in out
    assert questions[2][:60] in out
    run(capsys, "report", "--page", "page.html")
    assert "<mark>" in (home / "page.html").read_text()


def test_a_dry_run_keeps_nothing(home, capsys):
    out, _ = run(capsys, "prep", "small.toml", "--dry-run", "--json")
    told = json.loads(out)
    assert told["stages"] == "normalise, exact, passages, near, safety"
    assert told["funnel"]["read"]["documents"] == 62
    assert "1 files" in told["source web"]
    assert told["timings"][0]["step"] == "reading"
    assert "Seconds of work" in run(capsys, "prep", "small.toml", "--dry-run")[0]
    assert not list((home / "home").rglob("corpus.json"))


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"text_field": "body"}, 3, "a.jsonl:1"),
        ({"binary": True}, 3, "malformed row"),
        ({"cut": True}, 3, "damaged or cut short"),
        ({"empty": True}, 3, "has no documents"),
        ({"missing": True}, 3, "no such file"),
        ({"key": "[corpus.nera]"}, 2, "near"),
        ({"key": "[corpus.heuristics]\nmin_words = 3"}, 2, "min_words"),
        ({"key": "[corpus.weights]\nquality = [[0.0, 1.0]]"}, 2, "quality"),
        ({"key": '[corpus.decontaminate]\ntasks = ["no_such_task"]'}, 2, "no_such_task"),
    ],
)
def test_wrong_input_is_one_message_and_leaves_nothing(home, capsys, change, code, said):
    web, recipe = home / "web", home / "small.toml"
    if "text_field" in change:
        recipe.write_text(RECIPE.replace('lang = "en"', 'lang = "en"\ntext_field = "body"'))
    elif "binary" in change:
        (web / "a.jsonl").write_bytes(bytes(range(256)) * 40)
    elif "cut" in change:
        data = zstandard.compress((web / "a.jsonl").read_bytes())
        (web / "a.jsonl.zst").write_bytes(data[: len(data) // 2])
    elif "empty" in change:
        (web / "a.jsonl").write_text("")
    elif "missing" in change:
        recipe.write_text(RECIPE.replace('path = "web"', 'path = "wbe"'))
    else:
        recipe.write_text(RECIPE + change["key"] + "\n")
    out, err = run(capsys, "prep", "small.toml", code=code)
    assert out == ""
    assert err.count("error: ") == 1
    assert said in err
    assert not list((home / "home").rglob("corpus.json"))


def test_report_on_what_has_no_funnel_or_is_no_corpus(home, capsys):
    run(capsys, "report", code=4)
    run(capsys, "report", "corpus/nothing", code=4)
    run(capsys, "prep", "small.toml", "--workers", "0", code=2)
    (home / "gone").mkdir()
    (home / "gone" / "x").touch()
    run(capsys, "prep", "small.toml", "--keep-dropped", "gone", code=2)


def test_a_trained_scorer_can_be_used(home, capsys):
    out, _ = run(capsys, "train-quality", "scorer", "--good", "web", "--json")
    facts = json.loads(out)
    assert (home / "scorer" / "scorer.json").exists()
    assert facts
    with (home / "small.toml").open("a") as recipe:
        recipe.write('[corpus.quality]\nscorer = "scorer"\nmin_sentence = 0.0\n')
    run(capsys, "prep", "small.toml", "--quiet")
    run(capsys, "train-quality", "scorer", "--good", "web", code=3)
    run(capsys, "train-quality", "other", "--good", "nowhere", code=3)


def test_what_is_found_writes_nothing_to_keep_dropped_and_says_so(home, capsys):
    run(capsys, "prep", "small.toml", "--quiet")
    _, err = run(capsys, "prep", "small.toml", "--quiet", "--keep-dropped", "gone")
    assert "nothing was written to --keep-dropped: add --fresh" in err
    assert not list(home.glob("gone/*"))
    _, err = run(capsys, "prep", "small.toml", "--quiet", "--keep-dropped", "gone", "--fresh")
    assert "nothing was written" not in err
    assert list((home / "gone").iterdir())


def test_report_tells_what_it_cannot_describe(home, capsys):
    registry = Registry.open()
    with registry.stage(Draft("tokenizer", "words", "0" * 64)) as staged:
        (staged.path / "x").write_bytes(b"x")
        staged.publish()
    _, err = run(capsys, "report", "tokenizer/words", code=2)
    assert "tokenizer/words is no corpus and no token shards" in err
