import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.data.prep.text import sentence_scorer as module
from bc2.data.prep.text.corrupted_sentences import corrupted
from bc2.data.prep.text.sentence_scorer import (
    FACTS,
    WEIGHTS,
    Scorer,
    load_scorer,
    scorer_digests,
    train_scorer,
)
from bc2.errors import DataError, IntegrityError

MASK = 2**64 - 1
EN = re.findall(
    r"\w+", "the quick brown fox jumps over a lazy dog and then it sleeps under the old tree"
)
ZH = "人民政府应当保护文化遗产并且依照法律的规定加强管理工作促进社会发展"


def prose(count, seed):
    chance = random.Random(seed)
    for at in range(count):
        yield f"The {' '.join(chance.sample(EN, 9))}, case {at} of {chance.randrange(99)}."
        start = chance.randrange(len(ZH) - 14)
        yield f"第{at}条{ZH[start : start + 14]}，共{chance.randrange(99)}项。"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("scorer")
    facts = train_scorer(prose(400, 1), corrupted(prose(400, 2), 3), out, seed=5)
    return out, facts


def naive_score(sentence, weights, facts):
    """The score computed one n-gram at a time, with Python's integers."""
    text = " ".join(["", *sentence.split(), ""]) if sentence.strip() else " "
    text = "".join("0" if c < "\U00010000" and c.isdigit() else c for c in text)
    total = count = 0
    for order in facts["orders"]:
        for first in range(len(text) - order + 1):
            rolling = 0
            for c in text[first : first + order]:
                rolling = (rolling + ord(c)) * int(module._FACTOR) & MASK
            salted = (rolling + order * int(module._SALT)) * int(module._FACTOR) & MASK
            total += int(weights[salted >> (64 - facts["bits"])])
            count += 1
    logit = facts["bias"] + total / (2**16 * max(count, 1) ** 0.5)
    return 1 / (1 + np.exp(-logit))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=6))
def test_scores_are_those_of_the_naive_reference(sentences):
    facts = {"orders": [1, 2, 3, 4], "bits": 12, "bias": 0.25}
    weights = np.random.default_rng(1).integers(-9000, 9000, 1 << 12, dtype=np.int32)
    scores = Scorer(weights, facts).score(sentences)
    assert scores.dtype == np.float32
    expected = [naive_score(sentence, weights, facts) for sentence in sentences]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_score_does_not_depend_on_its_neighbours(trained, monkeypatch):
    scorer = load_scorer(trained[0])
    sentences = [*prose(50, 9), "", " \n", "x"]
    together = scorer.score(sentences)
    assert together.tolist() == [scorer.score([sentence])[0] for sentence in sentences]
    monkeypatch.setattr(module, "_BATCH", 100)
    assert together.tolist() == scorer.score(sentences).tolist()
    assert together.tolist() == scorer.score(sentences[::-1])[::-1].tolist()


def test_it_learns(trained):
    out, facts = trained
    assert facts["tests"]["all"]["auc"] > 0.95
    assert {"cjk", "other"} < set(facts["tests"])
    assert facts["sentences"]["good"] == 800
    scorer = load_scorer(out)
    fresh = scorer.score(list(prose(100, 77)))
    wrong = scorer.score(list(corrupted(prose(100, 78), 79)))
    assert fresh.mean() > 0.8 > 0.3 > wrong.mean()


def test_training_again_gives_the_same_files(trained, tmp_path):
    out, facts = trained
    again = train_scorer(prose(400, 1), corrupted(prose(400, 2), 3), tmp_path / "again", seed=5)
    assert again == facts == json.loads((out / FACTS).read_text())
    for name in (FACTS, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    other = train_scorer(prose(400, 1), corrupted(prose(400, 2), 3), tmp_path / "other", seed=6)
    assert other["sha256"] != facts["sha256"]


def test_a_limit_keeps_a_sample(tmp_path):
    facts = train_scorer(prose(300, 1), corrupted(prose(300, 2), 3), tmp_path, seed=1, limit=150)
    assert facts["sentences"]["good"] == facts["sentences"]["bad"] == 150


def test_what_cannot_be_trained_or_loaded(trained, tmp_path):
    with pytest.raises(DataError, match="the good text has 3 different sentences") as caught:
        train_scorer(["One. Two. Three. One."], prose(200, 1), tmp_path / "few", seed=1)
    assert caught.value.todo == "give good text with 100 of them or more"
    with pytest.raises(DataError, match="the bad text has 1 different sentence;"):
        train_scorer(prose(200, 1), ["One."], tmp_path / "few", seed=1)
    # of a single good sentence no bad one can be made, and it is the good one that is told
    with pytest.raises(DataError, match="the good text has 1 different sentence;"):
        train_scorer(["One."], corrupted(["One."], 1), tmp_path / "few", seed=1)
    with pytest.raises(DataError, match="not empty"):
        train_scorer(prose(200, 1), prose(200, 2), trained[0], seed=1)
    with pytest.raises(DataError, match="train-quality"):
        load_scorer(tmp_path / "nowhere")
    for folder, change in (("old", {"version": 0}), ("list", None)):
        (tmp_path / folder).mkdir()
        facts = [] if change is None else {**trained[1], **change}
        (tmp_path / folder / FACTS).write_text(json.dumps(facts))
        (tmp_path / folder / WEIGHTS).write_bytes((trained[0] / WEIGHTS).read_bytes())
        with pytest.raises(DataError, match="not a scorer"):
            load_scorer(tmp_path / folder)


def test_changed_weights_are_noticed(trained, tmp_path):
    weights = bytearray((trained[0] / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(weights)
    (tmp_path / FACTS).write_bytes((trained[0] / FACTS).read_bytes())
    with pytest.raises(IntegrityError):
        load_scorer(tmp_path)
    assert set(scorer_digests(trained[0])) == {FACTS, WEIGHTS}


def test_corruptions_are_the_same_from_a_seed():
    one, two, other = (list(corrupted(prose(30, 1), seed)) for seed in (1, 1, 2))
    assert one == two != other
    assert len(one) == 60
    assert not set(one) & set(prose(30, 1))
