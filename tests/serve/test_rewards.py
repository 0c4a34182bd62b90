"""``POST /v1/rewards``: scores over HTTP, held against the same scores without a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_checkpoints
import made_rewards
import pytest
import torch
from made_rewards import conversation
from running_server import Server, serving

from bc2.align.reward.score_answers import score_pass
from bc2.align.reward.score_reader import AnswerReader, answer_marked
from bc2.generate.load import open_model
from bc2.registry import Registry

CPU = torch.device("cpu")
TALKS = [conversation(f"答案是 {n}?", "ja " * (n % 5) + "A") for n in range(12)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    base = made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(window=128), role="chat",
        files={"chat.json": made_rewards.LAYOUT},
    )  # fmt: skip
    made_rewards.register(home, "judge")
    made_rewards.register(home, "bare", seed=3, facts={})
    with pytest.MonkeyPatch.context() as at_home:
        at_home.setenv("BC2_HOME", str(home))
        made_rewards.register_adapter(home, base)
    return home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as at_home:
        at_home.setenv("BC2_HOME", str(home))
        with serving(home, "judge", "bare", "judging", "talker", max_waiting=2048) as server:
            yield server


def alone(home: Path, name: str, talks: list[Any]) -> list[float]:
    artifact = Registry.open(home).resolve(name)
    reader = AnswerReader.of(artifact)
    with open_model(artifact, CPU, torch.float32) as loaded:
        return [
            float(score_pass(loaded.model, [reader.read(answer_marked(talk)).sample])[0])
            for talk in talks
        ]


@pytest.mark.parametrize("name", ["judge", "judging"])
def test_conversations_have_the_scores_that_they_have_alone(
    home: Path, server: Server, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    wanted = alone(home, name, TALKS)
    reply = server.post("/v1/rewards", {"model": name, "messages": TALKS}).json
    assert [row["score"] for row in reply["data"]] == pytest.approx(wanted, abs=1e-5)
    assert [row["index"] for row in reply["data"]] == list(range(12))
    standard = [(score - 0.5) / 2 for score in wanted]
    assert [row["standard_score"] for row in reply["data"]] == pytest.approx(standard, abs=1e-5)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] > 12
    one = server.post("/v1/rewards", {"model": name, "messages": TALKS[3]}).json["data"]
    assert [row["score"] for row in one] == pytest.approx(wanted[3:4], abs=1e-5)


def test_an_adapter_stands_beside_the_weights_of_a_model_that_speaks(server: Server) -> None:
    judging, talker = (server.models.by_name[name].lane for name in ("judging", "talker"))
    weights = [judging.model.model.embed_tokens.weight, talker.engine.runner.model.model.embed_tokens.weight]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    said = {"model": "talker", "messages": TALKS[0][:1], "temperature": 0, "max_tokens": 3}
    assert server.post("/v1/chat/completions", said).status == 200


def test_a_model_without_a_scale_has_no_standard_scores(server: Server) -> None:
    (row,) = server.post("/v1/rewards", {"model": "bare", "messages": TALKS[0]}).json["data"]
    assert row["standard_score"] is None


def test_clients_at_once_share_passes_and_keep_their_scores(home: Path, server: Server) -> None:
    wanted = alone(home, "judge", TALKS)
    found: dict[int, float] = {}

    def ask(number: int) -> None:
        reply = server.post("/v1/rewards", {"model": "judge", "messages": TALKS[number]})
        found[number] = reply.json["data"][0]["score"]

    before = server.metric("bc2_scored_answers_total")
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[number] for number in range(12)] == pytest.approx(wanted, abs=1e-5)
    assert server.metric("bc2_scored_answers_total") == before + 12
    assert server.metric("bc2_scored_tokens_total") > 0
    server.wait(lambda: server.metric("bc2_answers_waiting") == 0)


def test_more_than_a_pass_holds_are_answered_in_order(home: Path, server: Server) -> None:
    many = [TALKS[number % 12] for number in range(300)]
    reply = server.post("/v1/rewards", {"model": "judge", "messages": many}).json["data"]
    wanted = alone(home, "judge", TALKS)
    assert [row["score"] for row in reply] == pytest.approx(25 * wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": TALKS[0][:1]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/score", {"context": "a", "continuation": "b"}),
    ],
)
def test_a_reward_model_says_no_next_token(server: Server, path: str, body: Any) -> None:
    reply = server.post(path, {"model": "judge", **body})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert reply.error["code"] == "wrong_kind_of_model"
    assert "'judge' is a reward model, which says no next token" in reply.error["message"]


WRONG: list[tuple[Any, str, str]] = [
    ([], "messages", "without messages"),
    ([[]], "messages[0]", "without messages"),
    (TALKS[0][:1], "messages[0].role", "there is no answer to score"),
    ([TALKS[0], TALKS[1][:1]], "messages[1][0].role", "there is no answer to score"),
    (conversation("a", "  "), "messages", "is empty"),
    ([TALKS[0], conversation("a", "ja " * 200)], "messages[1]", "and the model reads 128"),
    (conversation("a", "ja " * 20000), "messages[1].content", "128"),
    ([TALKS[0], 7], "messages[1]", "should be a list of messages"),
    ([TALKS[0]] * 2049, "messages", "at most 2,048"),
    ("a", "messages", "should be a list of messages"),
    ([{"role": "tool", "content": "a"}], "messages[0].role", "should be one of"),
    ([{"role": "assistant", "content": "a"}], "messages", "at the beginning"),
]


@pytest.mark.parametrize(("messages", "param", "said"), WRONG, ids=lambda one: str(one)[:30])
def test_wrong_conversations_are_one_message(
    server: Server, messages: Any, param: str, said: str
) -> None:
    reply = server.post("/v1/rewards", {"model": "judge", "messages": messages})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert said in reply.error["message"]


def test_wrong_models_and_fields_are_one_message(server: Server) -> None:
    asked = {"model": "talker", "messages": TALKS[0]}
    speaking = server.post("/v1/rewards", asked)
    assert (speaking.status, speaking.error["code"]) == (400, "wrong_kind_of_model")
    assert "'talker' is no reward model" in speaking.error["message"]
    assert server.post("/v1/rewards", {**asked, "model": "none"}).status == 404
    unknown = server.post("/v1/rewards", {**asked, "model": "judge", "normalize": True})
    assert (unknown.status, unknown.error["param"]) == (400, "normalize")


def test_more_than_may_wait_are_turned_away(home: Path) -> None:
    with serving(home, "judge", max_waiting=2) as server:
        asked = {"model": "judge", "messages": TALKS[:1] * 19}
        assert server.post("/v1/rewards", asked).error["param"] == "messages"
        assert server.post("/v1/rewards", {**asked, "messages": TALKS}).status == 200


def test_a_failing_pass_is_a_500_and_told_by_health(
    home: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "judge", "messages": TALKS[0]}

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as broken:
        broken.setattr("bc2.serve.reward_lane.score_pass", fail)
        assert [server.post("/v1/rewards", asked).status for _ in range(2)] == [500, 500]
        assert server.get("/health").status == 503
    assert server.post("/v1/rewards", asked).status == 200
    assert server.get("/health").status == 200


def test_a_score_that_is_no_number_is_no_json(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "bc2.serve.reward_lane.score_pass", lambda model, samples: torch.full((1,), torch.nan)
    )
    reply = server.post("/v1/rewards", {"model": "judge", "messages": TALKS[0]})
    assert (reply.status, reply.error["code"]) == (500, "score_not_finite")


def test_models_say_what_they_can(server: Server) -> None:
    rows = {row["id"]: row for row in server.get("/v1/models").json["data"]}
    judge = rows["judge"]
    assert (judge["role"], judge["chat"], judge["sampling"]) == ("reward", False, {})
    assert judge["scores"] == {"scale": {"centre": 0.5, "scale": 2.0}}
    assert rows["bare"]["scores"] == {"scale": None}
    assert "scores" not in rows["talker"]
    tokens = server.post("/tokenize", {"model": "judge", "messages": TALKS[0]}).json
    assert tokens["count"] > 0
