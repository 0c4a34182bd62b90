"""`bc2 score-reward`: its tables, its files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import made_rewards
import pytest

Bc2 = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    base = made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(window=128), role="chat",
        files={"chat.json": made_rewards.LAYOUT},
    )  # fmt: skip
    made_rewards.register(home)
    made_rewards.register(home, "other", seed=2)
    made_rewards.register_adapter(home, base)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def written(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return name


def test_pairs_by_several_models(bc2: Bc2) -> None:
    pairs = written("pairs.jsonl", made_rewards.comparisons(12))
    asked = ("score-reward", "judge", "b=other", "judging", "--data", pairs)
    found = bc2(*asked, "--json", "--out", "out.jsonl", "--precision", "fp32").json
    assert list(found["models"]) == list(found["refs"]) == ["judge", "b", "judging"]
    assert (found["answers"], found["pairs"], found["left_out"]) == (24, 12, {})
    assert [row["models"] for row in found["agreement"]] == [
        ["judge", "b"], ["judge", "judging"], ["b", "judging"],
    ]  # fmt: skip
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    mean = sum(row["scores"]["b"]["score"] for row in rows) / 24
    assert found["models"]["b"]["mean"] == pytest.approx(mean)
    # Both answers of a pair have one prompt.
    assert len({row["prompt_digest"] for row in rows}) == 12
    assert len({row["answer_digest"] for row in rows}) == 24
    said = bc2(*asked).out
    assert "pairs.jsonl: 24 answers, 12 pairs" in said
    assert "pairs in order by judging" in said
    assert "longer wins" in said
    assert "judge and b" in said


def test_chats_have_scores_and_no_order(bc2: Bc2) -> None:
    talks = [made_rewards.conversation("答案?", f"A {number}") for number in range(5)]
    path = written("chats.jsonl", [{"messages": talk} for talk in talks])
    found = bc2("score-reward", "judge", "--data", path, "--json").json
    assert (found["answers"], found["pairs"], found["agreement"]) == (5, None, [])
    model = found["models"]["judge"]
    assert model["preference"] is None
    assert model["lowest"] <= model["mean"] <= model["highest"]
    assert (model["centre"], model["scale"]) == (0.5, 2.0)


def test_scored_answers_are_pairs_too(bc2: Bc2) -> None:
    row = {
        "messages": [{"role": "user", "content": "答案?"}],
        "responses": [{"response": said, "score": score} for said, score in
                      (("A", 0.1), ("B 12", 0.9), ("C", 0.5))],
    }  # fmt: skip
    found = bc2("score-reward", "judge", "--data", written("s.jsonl", [row]), "--json").json
    assert (found["answers"], found["pairs"]) == (3, 3)


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_verbs_that_speak_say_what_a_reward_model_is(bc2: Bc2, verb: str) -> None:
    prompt = ("hello",) if verb == "generate" else ()
    whole = bc2(verb, "judge", *prompt)
    assert (whole.code, whole.out) == (4, "")
    assert "of role reward" in whole.err
    adapter = bc2(verb, "judging", *prompt)
    assert (adapter.code, adapter.out) == (4, "")
    assert "has a scalar head" in adapter.err
    assert "bc2 score-reward" in adapter.err


def test_the_newest_model_is_one_that_speaks(bc2: Bc2) -> None:
    done = bc2("generate", "答案", "--max-new-tokens", 1)
    assert done.code == 0
    assert "checkpoint/talker" in done.err


WRONG: list[tuple[list[str], int, str]] = [
    (["talker", "--data", "c.jsonl"], 4, "of role chat"),
    (["nothing", "--data", "c.jsonl"], 4, "nothing"),
    (["judge", "judge", "--data", "c.jsonl"], 2, "two models are called 'judge'"),
    (["judge", "--data", "nowhere.jsonl"], 4, "nowhere.jsonl"),
    (["judge", "--data", "talker"], 4, "is a checkpoint, and answers are needed"),
    (["judge", "--data", "c.jsonl", "--split", "heldout"], 2, "--split is of an artifact"),
    (["judge", "--data", "c.jsonl", "--split", "test"], 2, "'test' is no split"),
    (["judge", "--data", "c.jsonl", "--too-long", "cut"], 2, "neither stop nor drop"),
    (["judge", "--data", "c.jsonl", "--out", "no/where.jsonl"], 2, "no such directory"),
    (["judge", "--data", "asks.jsonl"], 3, "the last message is not the assistant's"),
    (["judge", "--data", "long.jsonl"], 3, "1 of 1 answers are too long for judge"),
]


@pytest.mark.parametrize(("args", "code", "said"), WRONG, ids=lambda one: str(one)[:60])
def test_wrong_inputs_are_one_message(bc2: Bc2, args: list[str], code: int, said: str) -> None:
    written("c.jsonl", [{"messages": made_rewards.conversation("a", "b")}])
    written("asks.jsonl", [{"messages": made_rewards.conversation("a", "b")[:1]}])
    written("long.jsonl", [{"messages": made_rewards.conversation("a", "ja " * 200)}])
    done = bc2("score-reward", *args)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
