"""`bc2 eval --apply-chat-template`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest

from bc2.evaluate.evaluation import EvalRequest
from bc2.evaluate.suite_prompts import SuiteRows
from bc2.harness.suites import suite_of
from bc2.registry import Registry

Bc2 = Callable[..., Any]


@pytest.fixture(scope="module")
def chat_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model that has a chat layout, and one without."""
    home = tmp_path_factory.mktemp("home")
    layout = {"chat.json": b'{"layout": "baichuan"}'}
    made_checkpoints.register(home, "talks", made_checkpoints.drawn(), files=layout)
    made_checkpoints.register(home, "says-7", made_checkpoints.saying("#### 7"), files=layout)
    made_checkpoints.register(home, "plain")
    return home


@pytest.fixture(autouse=True)
def at_home(offline: None, chat_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(chat_home))


def found(run: Any) -> tuple[dict[str, Any], Path]:
    """The scores of a run of one suite, and their folder."""
    (scores,) = run.json["scores"]
    return scores, Path(scores["path"])


def test_scores_of_chats_are_scores_of_their_own(bc2: Bc2, bench_data: Path) -> None:
    asked = ("eval", "talks", "--bench", "medqa", "--data", bench_data, "--limit", 3)
    plain, at = found(bc2(*asked, "--json"))
    turns, chat_at = found(bc2(*asked, "--apply-chat-template", "--json"))
    one_turn, one_at = found(
        bc2(*asked, "--apply-chat-template", "--no-fewshot-as-multiturn", "--json")
    )
    assert len({plain["ref"], turns["ref"], one_turn["ref"]}) == 3
    found_again = bc2(*asked, "--apply-chat-template", "--fewshot-as-multiturn", "--json")
    assert found(found_again)[0]["ref"] == turns["ref"]
    assert [one["made"] for one in found_again.json["scores"]] == [False]
    # What people and lm-eval's tools read says so.
    assert turns["summaries"][0]["layout"] == "baichuan"
    assert "layout" not in plain["summaries"][0]
    results = [json.loads((one / "results.json").read_text()) for one in (at, chat_at, one_at)]
    assert [one["fewshot_as_multiturn"] for one in results] == [None, True, False]
    assert [bool(one["chat_template"]) for one in results] == [False, True, True]
    assert results[0]["chat_template_sha"] is None
    assert results[1]["chat_template_sha"] == results[2]["chat_template_sha"] != None  # noqa: E711
    digests = [
        [json.loads(line)["prompt_hash"] for line in next((one / "samples").iterdir()).open()]
        for one in (at, chat_at, one_at)
    ]
    assert all(len(set(three)) == 3 for three in zip(*digests, strict=True))
    shown = bc2(*asked, "--apply-chat-template")
    assert "chat layout baichuan" in shown.out
    artifact = Registry.open().resolve(turns["ref"], "scores")
    assert artifact.manifest.facts["chat_layout"] == "baichuan"


def test_texts_are_answered(bc2: Bc2, bench_data: Path) -> None:
    asked = ("eval", "says-7", "--bench", "gsm8k", "--data", bench_data, "--limit", 2)
    scores, _ = found(bc2(*asked, "--apply-chat-template", "--json"))
    assert scores["summaries"][0]["not_extracted"]["strict-match"] == 0
    assert scores["summaries"][0]["layout"] == "baichuan"


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        (("plain", "--bench", "medqa"), 3, "checkpoint/plain has no chat layout"),
        (("talks", "--bench", "text"), 2, "--apply-chat-template is not about --bench text"),
    ],
)
def test_wrong_input(bc2: Bc2, args: tuple[str, ...], code: int, what: str) -> None:
    run = bc2("eval", *args, "--data", "nowhere", "--apply-chat-template")
    assert (run.code, run.out) == (code, ""), run.err
    assert what in run.err


def test_turns_without_a_chat(bc2: Bc2) -> None:
    run = bc2("eval", "talks", "--bench", "medqa", "--no-fewshot-as-multiturn")
    assert run.code == 2
    assert "--no-fewshot-as-multiturn is about chats" in run.err


def test_keys_of_before_are_keys_of_plain_prompts(bench_data: Path) -> None:
    rows = SuiteRows.open(suite_of("medqa"), bench_data)
    plain, chat = EvalRequest().settings(rows), EvalRequest(apply_chat_template=True).settings(rows)
    later = {"apply_chat_template", "fewshot_as_multiturn"}
    assert chat.keyed().keys() - plain.keyed().keys() == later
    assert not later & plain.keyed().keys()
