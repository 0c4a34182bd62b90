"""Comparisons out of rows: every format, what is refused, and properties of any of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bc2.data.chats.bad_chat import BadChat
from bc2.data.pairs.comparison import Answer, Comparison, drawn
from bc2.data.pairs.dialogues import dialogue_messages, parted
from bc2.data.pairs.pair_formats import read_row, recognise, unread_keys

ASKED = [{"role": "user", "content": "hi"}]
TURNS = [*ASKED, {"role": "assistant", "content": "ho"}, {"role": "user", "content": "and?"}]
SHARED = [{"from": "human", "value": "hi"}]
TWO = {"chosen": "good", "rejected": "bad"}
OTHER = [{"role": "user", "content": "other"}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


DIALOGUE = "\n\nHuman: hi\n\nAssistant: ho\n\nHuman: and?\n\nAssistant: "
WHOLE = {key: [*TURNS, said(text)] for key, text in TWO.items()}
SCORED = [{"response": "good", "score": 0.75}, {"response": "bad", "score": 0.5}]

#: Row, format, whether its prompt has several turns, the scores.
ROWS: list[tuple[dict[str, Any], str, bool, tuple[float, ...] | None]] = [
    ({"prompt": "hi", **TWO}, "pairs", False, None),
    ({"prompt": TURNS, **TWO}, "pairs", True, None),
    ({"prompt": ASKED, "chosen": said("good"), "rejected": [said("bad")]}, "pairs", False, None),
    ({"prompt": "hi", **TWO, "score_chosen": 0.75, "score_rejected": 0.5}, "pairs", False,
     (0.75, 0.5)),
    ({"prompt": "hi", **TWO, "chosen_score": 9, "rejected_score": 1}, "pairs", False, (9, 1)),
    (WHOLE, "pairs", True, None),
    ({"prompt": "and?", **WHOLE}, "pairs", True, None),
    ({"prompt": TURNS, **WHOLE}, "pairs", True, None),
    ({"conversations": SHARED, "chosen": {"from": "gpt", "value": "good"},
      "rejected": {"from": "gpt", "value": "bad"}}, "sharegpt", False, None),
    ({"messages": TURNS, "chosen": said("good"), "rejected": said("bad")}, "sharegpt", True, None),
    ({"instruction": "hi", "input": "", **TWO}, "sharegpt", False, None),
    ({key: DIALOGUE + text for key, text in TWO.items()}, "dialogues", True, None),
    ({"messages": TURNS, "responses": SCORED}, "scored", True, (0.75, 0.5)),
    ({"instruction": "hi", "completions": [
        {"response": "good", "overall_score": 8.5}, {"response": "bad", "overall_score": 3}]},
     "scored", False, (8.5, 3)),
    ({"prompt": "hi", "answers": [{"text": "good", "rank": 1}, {"text": "bad", "rank": 2}]},
     "ranked", False, None),
    ({"prompt": "hi", "answers": [{"text": "good", "rank": 0, "score": 2}, {
        "text": "bad", "rank": 4, "score": -1}]}, "ranked", False, (2, -1)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "form", "turns", "scores"), ROWS)
def test_each_format_is_recognised_and_read(row, form, turns, scores):
    assert recognise(row) == form
    assert list(unread_keys(row)) == []
    found = read_row(row, form)
    prompt = TURNS if turns else ASKED
    assert [(one["role"], one["content"]) for one in found.prompt] == [
        (one["role"], one["content"]) for one in prompt
    ]
    assert all(one["role"] == "user" or one["train"] is False for one in found.prompt)
    assert [one.messages for one in found.answers] == [[said("good")], [said("bad")]]
    assert found.pairs(0.0, Counter()) == [(0, 1)]
    assert tuple(one.score for one in found.answers) == (scores or (None, None))


def test_a_list_without_ranks_is_in_order_only_where_the_recipe_says_so():
    row = {"prompt": "hi", "responses": ["best", "middling", "worst"]}
    with pytest.raises(BadChat, match="nothing says which answer is better") as caught:
        recognise(row)
    assert 'format = "ranked"' in str(caught.value.todo)
    assert read_row(row, "ranked").pairs(0.0, Counter()) == [(0, 1), (0, 2), (1, 2)]


def test_keys_that_are_not_read_are_named():
    row = {"prompt": "hi", "id": 3, "answers": [{"text": "a", "rank": 1, "model": "m"}]}
    assert sorted(unread_keys(row)) == ["answers[].model", "id"]


def test_turns_of_one_speaker_in_a_dialogue_are_one_message():
    found = dialogue_messages("\n\nHuman: a\n\nHuman:b \n\nAssistant: c\n\nd", "chosen")
    assert found == [{"role": "user", "content": "a\n\nb"}, said("c\n\nd")]


def test_a_system_text_stands_before_the_prompt():
    found = read_row({"prompt": "hi", "system": "be brief", **TWO}, "pairs")
    assert found.prompt[0] == {"role": "system", "content": "be brief"}


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "hi", "chosen": "a", "rejected": "a"}, "identical_answers", "the same answer"),
    ({"prompt": "hi", "chosen": "a"}, "no_answer", "`rejected` is missing"),
    ({"prompt": "hi", "chosen": None, "rejected": "a"}, "no_answer", "`chosen` is null"),
    ({"prompt": ASKED, "chosen": [], "rejected": "a"}, "no_answer", "`chosen` is empty"),
    ({"prompt": ASKED, "chosen": ASKED, "rejected": "a"}, "no_answer", "of the user, not with"),
    ({"prompt": "  ", **TWO}, "no_prompt", "nothing that is answered"),
    (TWO, "no_prompt", "this has none"),
    ({"prompt": WHOLE["chosen"], **TWO}, "no_prompt", "of the assistant, not of the user"),
    ({"chosen": [*ASKED, said("a")], "rejected": [*OTHER, said("b")]}, "prompts_differ",
     "part at message 1"),
    ({"prompt": "no", **WHOLE}, "prompts_differ", "do not begin with the `prompt`"),
    ({"chosen": DIALOGUE + "a", "rejected": "\n\nHuman: no\n\nAssistant: b"}, "prompts_differ",
     "part at message 1"),
    ({"chosen": DIALOGUE + "a", "rejected": "b"}, "bad_message", "does not begin with a turn"),
    ({"prompt": "hi", **TWO, "score_chosen": 1}, "bad_score", "no `score_rejected`"),
    ({"prompt": "hi", **TWO, "score_chosen": math.nan, "score_rejected": 1}, "bad_score", "nan"),
    ({"prompt": "hi", **TWO, "score_chosen": -math.inf, "score_rejected": 1}, "bad_score", "inf"),
    ({"prompt": "hi", **TWO, "score_chosen": "9", "score_rejected": 1}, "bad_score", "not a numb"),
    ({"prompt": "hi", "responses": [{"text": "a", "score": True}] * 2}, "bad_score", "not a numb"),
    ({"prompt": "hi", "responses": [{"text": "a", "score": 1}, {"text": "b"}]}, "bad_score",
     r"`responses\[1\]` has no `score`"),
    ({"prompt": "hi", "responses": [{"text": "a", "score": 1}]}, "no_answer", "holds 1 answers"),
    ({"prompt": "hi", "responses": [{"score": 1}, {"score": 2}]}, "no_answer", "has no text"),
    ({"prompt": "hi", "responses": [{"text": "a", "rank": 1}, {"text": "b"}]}, "bad_rank", "None"),
    ({"messages": [*TURNS, said("a")], "label": True}, "one_label", "none to compare it with"),
    ({"messages": [*TURNS, said("a")]}, "not_compared", "no answer to compare"),
    ({"prompt": "hi", "completion": "ho"}, "not_compared", "no answer to compare"),
    ({"text": "hi"}, "no_format", "of no format of pairs: text"),
    ({"prompt": "hi", **TWO, "responses": SCORED}, "several_formats", "pairs and of scored"),
    ({"prompt": "hi", **TWO, "tools": [1]}, "no_place", "`tools`"),
    ({"prompt": "hi", **TWO, "images": ["x"]}, "no_place", "`images`"),
    ({"prompt": [{"role": "narrator", "content": "hi"}], **TWO}, "unknown_role", "'narrator'"),
    ({"prompt": "hi", "chosen": {**said("a"), "weight": 2}, "rejected": "b"}, "bad_mark",
     "answers count as a whole"),
    ({"prompt": "hi", "chosen": {**said("a"), "train": False}, "rejected": "b"}, "bad_mark",
     "answers count as a whole"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "what"), REFUSED)
def test_what_is_no_comparison_is_refused_by_name(row, reason, what):
    with pytest.raises(BadChat, match=what) as caught:
        read_row(row, recognise(row))
    assert caught.value.reason == reason


def scored(*scores: float, ranks: tuple[int, ...] | None = None) -> Comparison:
    answers = (
        Answer([said(f"answer {place}")], score, ranks[place] if ranks else None)
        for place, score in enumerate(scores)
    )
    return Comparison(ASKED, tuple(answers))


def test_scores_that_only_rounding_tells_apart_are_one_score():
    unpaired: Counter[str] = Counter()
    assert scored(0.3 + 0.3, 0.6, 0.1 + 0.2, 0.3).pairs(0.0, unpaired) == [
        (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip
    assert unpaired == {"same score": 2}


def test_pairs_that_are_nearer_than_the_gap_are_counted():
    unpaired: Counter[str] = Counter()
    assert scored(1.0, 0.5, 0.0).pairs(0.5, unpaired) == [(0, 2)]
    assert unpaired == {"near scores": 2}


def test_ranks_rule_and_scores_that_contradict_them_are_an_error():
    assert scored(5.0, 3.0, 1.0, ranks=(1, 2, 2)).pairs(0.0, Counter()) == [(0, 1), (0, 2)]
    with pytest.raises(BadChat, match="has the score 3, and the other one 5") as caught:
        scored(5.0, 3.0, ranks=(2, 1)).pairs(0.0, Counter())
    assert caught.value.reason == "contradiction"


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(0, 3))
def test_pairs_are_those_of_two_loops(scores, gap):
    unpaired: Counter[str] = Counter()
    found = set(scored(*map(float, scores)).pairs(float(gap), unpaired))
    everywhere = range(len(scores))
    naive = {(a, b) for a in everywhere for b in everywhere if scores[a] - scores[b] > gap}
    assert found == naive
    assert len(naive) + unpaired.total() == len(scores) * (len(scores) - 1) // 2


@given(st.integers(0, 30), st.integers(1, 40), st.integers())
def test_drawn_pairs_are_some_of_them_in_order(count, most, seed):
    pairs = [(number, number + 1) for number in range(count)]
    found = drawn(pairs, most, str(seed))
    assert found == sorted(set(found))
    assert set(found) <= set(pairs)
    assert len(found) == min(count, most)


WORDS = st.text("ab\n语:", min_size=1, max_size=6).map(str.strip).filter(bool)


@given(st.lists(WORDS, min_size=1, max_size=5), WORDS, WORDS)
def test_dialogues_part_where_their_answers_do(turns, good, bad):
    """The other way round, by joining: what hh-rlhf's writers did."""
    roles = [("Human", "Assistant")[number % 2] for number in range(len(turns))]
    if roles[-1] == "Assistant" or good == bad:
        return
    text = "".join(f"\n\n{role}: {turn}" for role, turn in zip(roles, turns, strict=True))
    both = [dialogue_messages(f"{text}\n\nAssistant: {last}", "x") for last in (good, bad)]
    prompt, chosen, rejected = parted(*both)
    assert [one["content"] for one in prompt] == turns
    assert (chosen, rejected) == ([said(good)], [said(bad)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(
        ["", "a", "b", "user", "assistant", "\n\nHuman: a\n\nAssistant: b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "text", "score", "rank"]), inner,
        max_size=3),
    max_leaves=8,
)  # fmt: skip
KEYS = ["prompt", "chosen", "rejected", "messages", "conversations", "responses", "system", "label"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5))
def test_any_row_is_read_or_refused(row):
    try:
        form = recognise(row)
        found = read_row(row, form)
        pairs = found.pairs(0.0, Counter())
    except BadChat as bad:
        assert bad.detail
        return
    for better, worse in pairs:
        assert json.dumps(found.answers[better].messages) != json.dumps(
            found.answers[worse].messages
        )
    assert found.prompt[-1]["role"] == "user"
    assert all(one.messages[-1]["role"] == "assistant" for one in found.answers)
