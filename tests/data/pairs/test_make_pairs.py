"""Pairs made of files: split by prompt, scores and targets, what is counted and what stops."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.make_chats import make_chats
from bc2.data.pairs.make_pairs import make_pairs
from bc2.data.pairs.pairs import Pairs
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.errors import DataError

TWO = {"chosen": "good", "rejected": "bad"}


def lines(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(path: str, name: str = "s", **more: Any) -> PairSourceConfig:
    return PairSourceConfig(name=name, path=path, **more)


def make(out: Path, *sources: PairSourceConfig, **more: Any) -> Pairs:
    out.mkdir()
    make_pairs(PairsConfig(sources=sources, **{"heldout_fraction": 0.0, **more}), out)
    return Pairs.open(out)


def scored(prompt: str, *scores: float) -> dict[str, Any]:
    answers = [{"text": f"answer {place}", "score": score} for place, score in enumerate(scores)]
    return {"prompt": prompt, "responses": answers}


def test_a_prompt_is_on_one_side_with_all_its_pairs_from_every_source(tmp_path):
    rows = [
        {"prompt": f"ask {n}", "chosen": f"good {n} {k}", "rejected": f"bad {n} {k}"}
        for n in range(60)
        for k in range(2)
    ]
    shared = [{"conversations": [{"from": "human", "value": f"ask {n}"}],
               "chosen": {"from": "gpt", "value": "x"}, "rejected": {"from": "gpt", "value": "y"}}
              for n in range(60)]  # fmt: skip
    made = make(
        tmp_path / "out", source(lines(tmp_path / "a.jsonl", rows), "a"),
        source(lines(tmp_path / "b.jsonl", shared), "b"), heldout_fraction=0.3,
    )  # fmt: skip
    prompts = {}
    for split in ("train", "heldout"):
        table = made.table(split)
        asked = [made.answers.at(split, place).messages[0]["content"] for place in table.chosen]
        prompts[split] = set(asked)
        # A number for each prompt, the same in both sources.
        assert len(set(zip(asked, table.prompt.tolist(), strict=True))) == len(set(asked))
        assert len(table) == 3 * len(set(asked))
        assert made.facts[split]["prompts"] == len(set(asked))
    assert prompts["train"].isdisjoint(prompts["heldout"])
    assert len(prompts["train"] | prompts["heldout"]) == 60
    assert 8 < len(prompts["heldout"]) < 30
    held = [each["heldout"] for each in made.facts["sources"]]
    assert held == [2 * len(prompts["heldout"]), len(prompts["heldout"])]


def test_answers_are_stored_once_and_pairs_point_at_them(tmp_path):
    made = make(tmp_path / "out", source(lines(tmp_path / "a.jsonl", [scored("hi", 3, 1, 2)])))
    table = made.table("train")
    assert made.answers.count("train") == 3
    texts = [
        tuple(made.answers.at("train", int(place)).messages[-1]["content"] for place in both)
        for both in zip(table.chosen, table.rejected, strict=True)
    ]
    assert texts == [("answer 0", "answer 1"), ("answer 0", "answer 2"), ("answer 2", "answer 1")]
    assert table.scores.tolist() == [[3, 1], [3, 2], [2, 1]]
    assert list(made.places("train", [2])) == ["a.jsonl, row 1"]


@pytest.mark.parametrize("how", ["standard", "range", "none"])
def test_targets_are_normalised_scores_of_the_training_answers(tmp_path, how):
    rng = np.random.default_rng(3)
    rows = [scored(f"ask {n}", *(rng.normal(1e4, 2, 4).tolist())) for n in range(50)]
    path = lines(tmp_path / "a.jsonl", rows)
    made = make(tmp_path / "out", source(path, normalise=how), heldout_fraction=0.2)
    train, held = made.table("train"), made.table("heldout")
    answers = {int(p): s for p, s in zip(train.chosen, train.scores[:, 0], strict=True)}
    answers |= {int(p): s for p, s in zip(train.rejected, train.scores[:, 1], strict=True)}
    values = np.array(list(answers.values()))
    centre, scale = {
        "standard": (values.mean(), values.std()),
        "range": ((values.max() + values.min()) / 2, (values.max() - values.min()) / 2),
        "none": (0.0, 1.0),
    }[how]
    assert len(held) > 0
    for table in (train, held):
        np.testing.assert_allclose(table.targets, (table.scores - centre) / scale, atol=1e-9)
    facts = made.facts["sources"][0]["normalisation"]
    assert facts["how"] == how
    assert facts["centre"] == pytest.approx(centre, rel=1e-12)


def test_a_stated_range_is_that_of_the_targets(tmp_path):
    path = lines(tmp_path / "a.jsonl", [scored("hi", 4, 8)])
    made = make(tmp_path / "out", source(path, score_range=(0, 10), normalise="range"))
    np.testing.assert_allclose(made.table("train").targets, [[0.6, -0.2]])
    assert made.facts["sources"][0]["scores"] == {
        "count": 2, "lowest": 4, "highest": 8, "range": [0, 10],
    }  # fmt: skip


def test_without_scores_there_are_no_targets(tmp_path):
    made = make(tmp_path / "out", source(lines(tmp_path / "a.jsonl", [{"prompt": "hi", **TWO}])))
    assert np.isnan(made.table("train").targets).all()
    assert made.facts["sources"][0]["normalisation"] is None
    assert made.facts["sources"][0]["scores"] is None


def test_answers_that_make_no_pair_are_counted_and_said(tmp_path, capsys):
    same = {"prompt": "b", "responses": [{"text": "x", "score": 1}, {"text": "x", "score": 2}]}
    rows = [scored("a", 1, 1, 5), same]
    made = make(tmp_path / "out", source(lines(tmp_path / "a.jsonl", rows)))
    facts = made.facts["sources"][0]
    assert facts["unpaired"] == {"identical": 1, "same score": 1}
    assert (facts["rows"], facts["pairs"]) == (2, 2)
    assert "two answers that make no pair: identical: 1, same score: 1" in capsys.readouterr().err


def test_at_most_so_many_pairs_of_a_row_are_drawn_by_the_seed(tmp_path):
    path = lines(tmp_path / "a.jsonl", [scored(f"ask {n}", *range(6)) for n in range(20)])
    one, again, other = (
        make(tmp_path / name, source(path, max_pairs=4), seed=seed).table("train")
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert np.bincount(one.prompt).tolist() == [4] * 20
    assert one.scores.tolist() == again.scores.tolist()
    assert one.scores.tolist() != other.scores.tolist()


SCALES: list[tuple[list[dict[str, Any]], bool]] = [
    ([scored(f"a {n}", 0.25, 0.75) for n in range(3)]
     + [scored(f"b {n}", 3, 8) for n in range(3)], True),
    # Of two prompts it may be chance, and one prompt with both shows that it is one scale.
    ([scored(f"a {n}", 0.25, 0.75) for n in range(2)]
     + [scored(f"b {n}", 3, 8) for n in range(9)], False),
    ([scored(f"a {n}", 0.25, 0.75) for n in range(9)]
     + [scored(f"b {n}", 3, 8) for n in range(9)] + [scored("c", 0.5, 8)], False),
    ([scored(f"a {n}", 0, 0.3, 1) for n in range(9)] + [scored("b", 0, 1)] * 9, False),
    ([scored(f"a {n}", 1 + n, 10) for n in range(9)], False),
    ([scored(f"a {n}", 0.25, 0.75) for n in range(9)]
     + [scored(f"b {n}", -3, 8) for n in range(9)], False),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "two"), SCALES)
def test_scores_on_two_scales_are_an_error_where_they_are_visible(tmp_path, rows, two):
    path = lines(tmp_path / "a.jsonl", rows)
    if not two:
        assert len(make(tmp_path / "out", source(path)).table("train")) >= len(rows)
        return
    with pytest.raises(DataError, match="are on two scales") as caught:
        make(tmp_path / "out", source(path))
    assert caught.value.where == "a.jsonl, row 1 and a.jsonl, row 4"
    assert not (tmp_path / "out" / "pairs.json").exists()
    make(tmp_path / "stated", source(path, score_range=(0, 10)))


def test_a_score_outside_of_the_range_is_an_error(tmp_path):
    path = lines(tmp_path / "a.jsonl", [scored("a", 0.2, 1), scored("b", 0.5, 7)])
    with pytest.raises(
        DataError, match=r"a score of 7 is outside of the source's score_range, 0 to"
    ):
        make(tmp_path / "out", source(path, score_range=(0, 1)))
    skipped = make(
        tmp_path / "skipped", source(path, score_range=(0, 1)), malformed="skip", max_malformed=0.5
    )
    assert skipped.facts["sources"][0]["skipped"] == {"bad_score": 1}
    assert skipped.facts["sources"][0]["skipped_rows"] == ["a.jsonl:2 bad_score"]
    assert skipped.facts["sources"][0]["scores"]["highest"] == 1


def test_nan_in_a_table_is_an_error_with_its_place(tmp_path):
    rows = [{"prompt": "hi", **TWO, "score_chosen": float("nan"), "score_rejected": 0.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a score is a finite number") as caught:
        make(tmp_path / "out", source(str(tmp_path / "a.parquet")))
    assert caught.value.where == f"{tmp_path}/a.parquet:1"
    assert 'pairs.malformed = "skip"' in str(caught.value.todo)


def test_rows_that_are_skipped_are_counted_by_reason(tmp_path):
    rows = [{"prompt": f"ask {n}", **TWO} for n in range(8)]
    rows += [{"prompt": "x", "chosen": "a"}, {"prompt": "x", "chosen": "a", "rejected": "a"}]
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="2 of 10 rows of source 's'.*pairs.max_malformed is 0.1"):
        make(tmp_path / "out", source(path), malformed="skip", max_malformed=0.1)
    made = make(tmp_path / "more", source(path), malformed="skip", max_malformed=0.2)
    assert made.facts["sources"][0]["skipped"] == {"identical_answers": 1, "no_answer": 1}


@pytest.mark.parametrize(
    ("rows", "fraction", "what"),
    [
        ([scored("a", 1, 1)], 0.0, "has no pairs; answers that make none: same score: 1"),
        ([{"prompt": "hi", **TWO}], 0.999, "all prompts are held out"),
        ([{"prompt": "hi", **TWO}], 0.001, "no prompt is held out"),
    ],
)
def test_an_empty_split_is_an_error(tmp_path, rows, fraction, what):
    path = lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=what):
        make(tmp_path / "out", source(path), heldout_fraction=fraction)


def test_chats_and_pairs_are_each_refused_by_the_other_with_where_to_give_them(tmp_path):
    chats = lines(tmp_path / "chats.jsonl", [{"prompt": "hi", "completion": "ho"}])
    pairs = lines(tmp_path / "pairs.jsonl", [{"prompt": "hi", **TWO}])
    with pytest.raises(DataError) as caught:
        make(tmp_path / "out", source(chats))
    assert "[chats]" in str(caught.value.todo)
    assert "bc2 sft" in str(caught.value.todo)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError) as caught:
        make_chats(
            ChatsConfig(sources=(ChatSourceConfig(name="s", path=pairs),)), tmp_path / "other"
        )
    assert "[pairs], for `bc2 reward` and `bc2 dpo`" in str(caught.value.todo)


def test_the_systems_text_is_part_of_every_prompt(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"prompt": "hi", **TWO}])
    made = make(tmp_path / "out", source(path), system="be brief")
    assert made.answers.at("train", 0).messages[0] == {"role": "system", "content": "be brief"}


def test_max_rows_reads_the_beginning(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"prompt": f"ask {n}", **TWO} for n in range(9)])
    made = make(tmp_path / "out", source(path, max_rows=4))
    assert list(made.places("train", range(4))) == [f"a.jsonl, row {n}" for n in range(1, 5)]
    assert made.count("train") == 4
