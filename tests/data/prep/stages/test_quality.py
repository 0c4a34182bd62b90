import gzip
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.settings import QualitySettings
from bc2.data.prep.stages import quality
from bc2.data.prep.stages.base import RECORD, REMOVED
from bc2.data.prep.stages.quality import COLUMNS, QualityStage
from bc2.data.prep.text import sentence_scorer as scorer
from bc2.data.prep.text.corrupted_sentences import corrupted
from bc2.data.prep.text.rule_scorer import RULES, RuleScorer, features
from bc2.data.prep.text.sentences import split_paragraphs, split_sentences
from bc2.errors import DataError

GOOD = "The committee met in the old library, and it agreed on most of the plan. "
GOOD_ZH = "第三条 各级人民政府应当加强对文化遗产的保护，并且依照法律的规定管理。"
BAD = "XK9@@##qW%%zz^^Rt~~pL$$mN**bV## "


def rules(*sentences):
    return RuleScorer().score(sentences)


def test_rules_know_good_from_bad():
    good = rules(GOOD, GOOD_ZH, "Yes.", "好。", "In 1984, 12 of 15 members voted.", "- And then?")
    assert good.min() > 0.7
    bad = rules(
        BAD,
        "首页 > | > > | _ _ | 》》 ★★★★★★★★★★",
        "===========================",
        "ä¸­å\x9b½äººæ°\x91å\x85±å\x92\x8cå\x9b½",
        "http://www.shop-best.com/a.php?id=77&ref=abc",
        "哈哈哈哈哈哈哈哈哈哈哈哈哈哈",
        "\ufffd\ufffd\ufffdab\ufffd",
        "  ",
    )
    assert bad.max() < 0.5


def test_rules_are_between_0_and_1_and_need_no_neighbours(monkeypatch):
    sentences = [GOOD, "", BAD, " \n", GOOD_ZH, "\U000f0000", "x", "😀" * 9]
    together = rules(*sentences)
    assert together.dtype == np.float32
    assert ((together >= 0) & (together <= 1)).all()
    assert together.tolist() == [rules(sentence)[0] for sentence in sentences]
    monkeypatch.setattr(scorer, "_BATCH", 3)
    assert together.tolist() == rules(*sentences).tolist()
    assert rules().tolist() == []


def naive(sentence):
    """The reference: some features, computed a character at a time."""
    text = sentence.lstrip("#>*-+ \t\r\n")
    solid = [c for c in text if not c.isspace()]
    lags = [
        sum(text[i] == text[i - lag] and not text[i].isspace() for i in range(lag, len(text)))
        for lag in (1, 2, 3, 4)
    ]
    words = len(text.split())
    letters = sum(c in "abXY" for c in solid)
    wide = sum(c in "中文的" for c in solid)
    capitals = sum(c in "XY" for c in solid)
    n = max(len(solid), 1)
    weight = n + 2 * wide  # an ideograph says as much as three letters or digits
    return {
        "empty": float(not solid),
        "short": max(0, 1 - (letters + 3 * wide) / 12),
        "digits": sum(c in "12" for c in solid) / weight,
        "symbols": sum(c in "#" for c in solid) / n,
        "no_letters": 1 - (letters + 3 * wide) / weight,
        "capitals": capitals / (letters + 3 * wide) if letters >= 10 else 0,
        "repeats": max(lags) / n,
        "long_words": letters / max(words, 1) if not wide else 0,
        "no_end": float(not solid or solid[-1] not in ".。"),
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("abXY12中文的#.。 \n"), max_size=40), max_size=5))
def test_features_are_those_of_a_naive_reference(sentences):
    found = features(sentences)
    assert {rule.feature for rule in RULES} | {"empty"} == set(found)
    for at, sentence in enumerate(sentences):
        for name, value in naive(sentence).items():
            assert found[name][at] == pytest.approx(value), (name, sentence)


def run(table, **given_settings):
    return QualityStage(QualitySettings(**given_settings)).apply(table, None)


def test_low_sentences_are_cut(records):
    text = f"{GOOD * 3}{BAD}\n\n{GOOD_ZH * 2}\n"
    table, removed, _ = run(records([text], lang="en"))
    left = table["text"][0].as_py()
    assert left == f"{GOOD * 3}\n\n{GOOD_ZH * 2}\n"
    (row,) = removed.to_pylist()
    assert (row["reason"], row["whole"]) == ("low_sentence", False)
    assert row["bytes"] == len(text.encode()) - len(left.encode())
    assert "XK9@@" in row["detail"]
    assert removed.schema == REMOVED


def test_scores_are_of_the_text_that_is_left(records):
    texts = [f"{GOOD * 3}{BAD}\n\n{GOOD_ZH * 2}\n", GOOD, "Hm.\n", f"{GOOD}\n{GOOD_ZH}"]
    table, _, _ = run(records(texts))
    assert table.schema == pa.schema([*RECORD, *COLUMNS])
    for row in table.to_pylist():
        sentences = split_sentences(row["text"])
        scores = RuleScorer().score(sentences)
        assert row["sentence_scores"] == scores.tolist()
        assert len(row["paragraph_scores"]) == len(split_paragraphs(row["text"]))
        weights = [len(sentence) for sentence in sentences]
        assert row["quality"] == pytest.approx(np.average(scores, weights=weights), rel=1e-6)
        first = sum(map(len, split_sentences(split_paragraphs(row["text"])[0])))
        inside = np.cumsum(weights) <= first
        mean = np.average(scores[inside], weights=np.array(weights)[inside])
        assert row["paragraph_scores"][0] == pytest.approx(mean, rel=1e-6)


def test_bad_documents_are_dropped(records):
    texts = [BAD * 5, f"{GOOD}{BAD}{BAD}", GOOD]
    table, removed, _ = run(records(texts), max_cut=0.3, min_document=0.3)
    assert table["text"].to_pylist() == [GOOD]
    rows = removed.sort_by("pos").to_pylist()
    assert [row["reason"] for row in rows] == ["low_quality"] * 2
    assert [row["bytes"] for row in rows] == [len(text.encode()) for text in texts[:2]]
    assert rows[0]["detail"].startswith("mean ")
    assert rows[1]["detail"].startswith("low sentences ")


def test_code_passes_and_has_no_scores(records):
    both = pa.concat_tables([records([BAD], lang="code"), records([BAD], 1, "fr")])
    table, removed, _ = run(both)
    assert len(removed) == 0
    assert table["text"].to_pylist() == [BAD, BAD]
    assert all(table[name].null_count == 2 for name in COLUMNS.names)
    table, removed, _ = run(records([BAD], lang="code"), languages=("code",))
    assert len(table) == 0
    assert len(removed) == 1


def test_fences_and_marks_are_left(records):
    block = f"```cpp\n{BAD}\n{BAD}\n```\n"
    text = f"{GOOD * 9}\n\n{block}\n$$\n{BAD}\n$$\n\n=====\n\n{GOOD}{BAD}"
    table, _, _ = run(records([text]))
    left = table["text"][0].as_py()
    assert left == text[: -len(BAD)]


def test_settings_reach_their_ends(records):
    texts = [f"{GOOD}{BAD}", BAD, "=== 1 ==="]
    kept, removed, _ = run(records(texts), min_sentence=0.0, min_document=0.0)
    assert kept["text"].to_pylist() == texts
    assert len(removed) == 0
    empty, _, _ = run(records([]))
    assert empty.schema == pa.schema([*RECORD, *COLUMNS])


def test_the_result_does_not_depend_on_the_part(records):
    chance = random.Random(4)
    texts = ["".join(chance.choices([GOOD, GOOD_ZH, BAD, "\n\n", "\n"], k=12)) for _ in range(40)]
    stage = QualityStage(QualitySettings())
    whole = stage.apply(records(texts), None)
    alone = [stage.apply(records([text], first=i), None) for i, text in enumerate(texts)]
    ids = pa.array(range(1, 41), pa.int64())  # origin_row counts within the fixture's table
    place = RECORD.get_field_index("origin_row")
    parts = pa.concat_tables([each.table for each in alone])
    numbers = pa.array([ids[pos].as_py() for pos in parts["pos"].to_pylist()], pa.int64())
    assert parts.set_column(place, RECORD.field(place), numbers).equals(whole.table)
    assert pa.concat_tables([each.removed for each in alone]).equals(whole.removed)
    assert 0 < len(whole.table) < 40


def test_a_trained_scorer(records, tmp_path):
    good = [GOOD.replace("plan", f"plan numbered {i}") + GOOD_ZH for i in range(400)]
    scorer.train_scorer(good, corrupted(good, 1), tmp_path, seed=1)
    stage = QualityStage(QualitySettings(scorer=str(tmp_path)))
    stage.check()
    assert set(stage.digests()) == {scorer.FACTS, scorer.WEIGHTS}
    again = pickle.loads(pickle.dumps(stage))
    table, removed = again.apply(records([GOOD * 5, BAD * 5]), None)[:2]
    assert table["text"].to_pylist() == [GOOD * 5]
    assert removed["reason"].to_pylist() == ["low_quality"]
    assert len(pickle.dumps(stage)) < 2000


def test_a_missing_scorer_is_said_before_work(tmp_path):
    with pytest.raises(DataError):
        QualityStage(QualitySettings(scorer=str(tmp_path / "none"))).check()
    QualityStage(QualitySettings()).check()
    assert QualityStage(QualitySettings()).digests() == {}
    assert quality.QualityStage.reasons == ("low_sentence", "low_quality")


@pytest.mark.parametrize(
    ("name", "lang"), [("en_gutenberg", "en"), ("zh_law", "zh"), ("zh_classical", "zh")]
)
def test_real_text_survives(records, name, lang):
    folder = Path(os.environ.get("BC2_TEST_DATA", "../shared/data"))
    path = folder / "corpus" / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(next(lines))["text"] for _ in range(40)]
    size = sum(len(text.encode()) for text in texts)
    _, removed, _ = run(records(texts, lang=lang))
    assert sum(removed["bytes"].to_pylist()) < 0.02 * size
