"""A conversation over one session of the engine, with a model that has drawn weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest

from bc2.chat.dialogue import Dialogue
from bc2.chat.saved import read_saved, write_saved
from bc2.chat.speaker import Speaker
from bc2.chat.talk import PARAMS, Talk
from bc2.errors import DataError, UsageError
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling.seeds import prompt_seed
from bc2.generate.sampling_config import SamplingConfig
from bc2.registry import Artifact
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.layout import USER_ID
from bc2.tokenizer.tokenizer import Tokenizer

WINDOW = 512
SETTINGS = SamplingConfig(max_new_tokens=24, temperature=0.7, seed=5, stop_ids=())


CHAT = chat_named("baichuan", Tokenizer.from_bytes(made_checkpoints.tokenizer_bytes()))


def engine() -> InferenceEngine:
    config = EngineConfig(cache_bytes=1 << 22, max_running=1, idle_share=1.0)
    return InferenceEngine(
        made_checkpoints.drawn(window=WINDOW), config, eos_id=CHAT.tokenizer.eos_id,
        decode_bytes=CHAT.generated_bytes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made_checkpoints.register(tmp_path_factory.mktemp("home"), "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made_checkpoints.register(tmp_path_factory.mktemp("home"), "other")


@pytest.fixture
def talk(artifact: Artifact) -> Iterator[Talk]:
    with engine().open() as session:
        speaker = Speaker(session, CHAT.generated_bytes)
        yield Talk(Dialogue(CHAT, WINDOW, "Answer."), speaker, SETTINGS, artifact)


def test_answers_are_the_engines_and_a_turn_reads_what_is_new(talk: Talk) -> None:
    for turn in range(4):
        shown: list[str] = []
        held = talk.speaker.stats.new_tokens
        before = len(talk.dialogue.ask("what is four and one?", 24).prompt)
        made = talk.say("what is four and one?", shown.append)
        assert "".join(shown) == made.text
        assert len(shown) > 3
        assert talk.speaker.stats.new_tokens - held == len(made.ids) == 24
        # Alone, in another engine, with nothing in its cache.
        prompt = [i for one in talk.dialogue.rounds for i in (*one.asked, *one.said)][
            : -len(made.ids)
        ]
        assert len(prompt) == before == made.prompt_tokens
        seed = prompt_seed(5, turn)
        asked = Request(prompt, SETTINGS.model_copy(update={"seed": seed}))
        (alone,) = next(engine().generate([asked])).continuations
        assert (alone.ids, made.finish_reason) == (made.ids, "length")
        # At most a part of a block, the last sampled token and the new message.
        new = len(talk.dialogue.rounds[-1].asked)
        assert made.read_tokens <= (new + 16 if turn else before)


def test_an_interrupted_answer_stays(talk: Talk) -> None:
    pieces = 0

    def interrupt(_: str) -> None:
        nonlocal pieces
        pieces += 1
        talk.speaker.stopped = pieces == 3

    made = talk.say("what is four and one?", interrupt)
    assert made.finish_reason == "interrupted"
    assert 3 <= len(made.ids) < 24
    assert talk.dialogue.rounds[0].answer == made.text
    again = talk.say("go on", lambda _: None)
    assert (again.finish_reason, len(again.ids)) == ("length", 24)
    # The next message follows the tokens that were sampled.
    followed = talk.dialogue.ask("x", 24).prompt
    first = [*talk.dialogue.rounds[0].asked, *made.ids, USER_ID]
    assert followed[: len(first)] == first


def test_a_message_that_cannot_be_answered_changes_nothing(talk: Talk) -> None:
    talk.say("hello", lambda _: None)
    talk.set_params({"max_new_tokens": 500})
    rounds = list(talk.dialogue.rounds)
    made = talk.say("hello " * 30, lambda _: None)  # Baichuan's layout cuts it
    assert made.cut > 0
    assert made.left_out == 1
    assert talk.dialogue.rounds[:1] == rounds
    with pytest.raises(UsageError, match="leaves nothing of the window"):
        talk.set_params({"max_new_tokens": WINDOW})
    assert talk.settings.max_new_tokens == 500


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"temprature": 1}, "no such setting: 'temprature'"),
        ({"top_p": 2.0}, "top_p: input should be less than or equal to 1, not 2.0"),
        ({"top_k": 1.5}, "top_k: "),
        ({"temperature": 0, "seed": -1}, "seed: "),
        ({"stop": ("a",)}, "no such setting: 'stop'"),
    ],
)
def test_wrong_settings_change_none(talk: Talk, values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as raised:
        talk.set_params(values)
    assert what in raised.value.what
    assert talk.settings == SETTINGS


def test_a_saved_conversation_goes_on_as_if_it_had_not_ended(
    talk: Talk, tmp_path: Path, artifact: Artifact
) -> None:
    path = tmp_path / "c.json"
    talk.set_params({"temperature": 0.9})
    for message in ("what is four and one?", "\ud800 half a pair", "天地"):
        talk.say(message, lambda _: None)
    write_saved(path, talk.dialogue, talk.params, artifact)
    next_one = talk.say("and then?", lambda _: None)
    with engine().open() as session:
        fresh = Talk(
            Dialogue(CHAT, WINDOW), Speaker(session, CHAT.generated_bytes), SETTINGS, artifact
        )
        assert fresh.restore(read_saved(path)) is None
        assert fresh.dialogue.rounds == talk.dialogue.rounds[:3]
        assert (fresh.dialogue.system, fresh.params) == ("Answer.", talk.params)
        assert fresh.say("and then?", lambda _: None).ids == next_one.ids


def test_for_another_model_a_conversation_is_rendered_anew(
    talk: Talk, tmp_path: Path, artifact: Artifact, other: Artifact
) -> None:
    path = tmp_path / "c.json"
    talk.say("what is four and one?", lambda _: None)
    talk.set_params({"temperature": 0.1})
    write_saved(path, talk.dialogue, talk.params, artifact)
    with engine().open() as session:
        fresh = Talk(
            Dialogue(CHAT, WINDOW), Speaker(session, CHAT.generated_bytes), SETTINGS, other
        )
        assert fresh.restore(read_saved(path)) == "it was held with another model, checkpoint/one"
        (made,) = fresh.dialogue.rounds
        assert made.said == tuple(CHAT.tokenizer.encode(made.answer))
        assert (made.user, fresh.params["temperature"]) == ("what is four and one?", 0.7)
        # And where somebody has edited the texts.
        data = json.loads(path.read_text())
        data["messages"][1]["content"] = "five"
        path.write_text(json.dumps(data), "utf-8-sig")  # with a byte order mark
        assert talk.restore(read_saved(path)) == "its texts were edited"
        assert talk.dialogue.rounds[0].said == tuple(CHAT.tokenizer.encode("five"))
        assert talk.say("and then?", lambda _: None).prompt_tokens > 10


def test_settings_of_a_file_that_are_none(talk: Talk, tmp_path: Path, artifact: Artifact) -> None:
    path = tmp_path / "c.json"
    write_saved(path, talk.dialogue, {"temperature": "hot"}, artifact)
    talk.dialogue.set_system("Other.")
    with pytest.raises(DataError, match="`sampling`: temperature"):
        talk.restore(read_saved(path))
    assert talk.dialogue.system == "Other."


def test_what_may_be_changed_is_a_setting() -> None:
    assert set(PARAMS) <= set(SamplingConfig.model_fields)
