"""Scores of answers: packed as alone, and read as they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import made_checkpoints
import made_rewards
import numpy as np
import pytest
import torch

from bc2.align.reward.score_answers import ScoreScale, score_batches, score_pass
from bc2.align.reward.score_data import open_data
from bc2.align.reward.score_figures import score_figures
from bc2.align.reward.score_models import score_models
from bc2.align.reward.score_reader import AnswerReader, ReadAnswer, Unfit, answer_marked
from bc2.align.reward.score_rows import score_rows
from bc2.errors import DataError, RefError, RunFailed, UsageError
from bc2.generate.load import open_model
from bc2.registry import Registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made_rewards.register(home)
    made_rewards.register(home, "other", seed=2)
    made_rewards.register(home, "short", window=16)
    base = made_checkpoints.register(
        home, "talker", made_checkpoints.drawn(window=128), role="chat",
        files={"chat.json": made_rewards.LAYOUT},
    )  # fmt: skip
    made_rewards.register_adapter(home, base)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def read(reader: AnswerReader, question: str, answer: str) -> ReadAnswer:
    found = reader.read(answer_marked(made_rewards.conversation(question, answer)))
    assert isinstance(found, ReadAnswer)
    return found


def pairs_file(count: int = 20) -> str:
    rows = made_rewards.comparisons(count)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "pairs.jsonl"


def chats_file(*answers: str) -> str:
    rows = [{"messages": made_rewards.conversation("答案?", answer)} for answer in answers]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "chats.jsonl"


def by_hand(home: Path, name: str, text: list[dict[str, str]]) -> float:
    """The value at the last token of a conversation with its end, without batch or packing."""
    artifact = Registry.open(home).resolve(name)
    with open_model(artifact, CPU, torch.float32) as loaded:
        rendered = AnswerReader.of(artifact).chat.render(text)
        labels = rendered.labels
        end = max(at for at, label in enumerate(labels) if label != -100)
        ids = torch.tensor([*rendered.ids[:end], labels[end]])
        with torch.no_grad():
            hidden = loaded.model(ids, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
            return float(loaded.model.values(hidden)[-1])


@pytest.mark.parametrize("budget", [1, 40, 100_000])
def test_packed_is_as_alone(home: Path, budget: int) -> None:
    artifact = Registry.open(home).resolve("judge")
    reader = AnswerReader.of(artifact)
    samples = [read(reader, f"答案 {n}?", "ja " * n + "A").sample for n in range(20)]
    with open_model(artifact, CPU, torch.float32) as loaded:
        alone = [score_pass(loaded.model, [one])[0] for one in samples]
        packed = [*score_batches(loaded.model, samples, budget)]
    assert np.concatenate(packed) == pytest.approx(alone, abs=1e-5)
    assert (len(packed) == 1) == (budget == 100_000)
    assert np.ptp(alone) > 0.1


@pytest.mark.parametrize("name", ["judge", "judging"])
def test_a_score_is_the_value_at_the_end_of_the_answer(home: Path, name: str) -> None:
    texts = [made_rewards.conversation("答案是 1?", said) for said in ("A", "A 12 ja", "B")]
    artifact = Registry.open(home).resolve(name)
    reader = AnswerReader.of(artifact)
    with open_model(artifact, CPU, torch.float32) as loaded:
        samples = [reader.read(answer_marked(text)).sample for text in texts]
        found = score_pass(loaded.model, samples)
    assert found == pytest.approx([by_hand(home, name, text) for text in texts], abs=1e-5)


def test_what_cannot_be_scored_says_why(home: Path) -> None:
    reader = AnswerReader.of(Registry.open(home).resolve("short"))
    talk = made_rewards.conversation
    cases = {
        "no_answer": talk("a", "b")[:1],
        "empty_answer": talk("a", " \n"),
        "too_long": talk("答案", "ja " * 30),
        "roles_out_of_order": [*talk("a", "b"), {"role": "assistant", "content": "c"}],
    }
    for code, messages in cases.items():
        found = reader.read(answer_marked(messages))
        assert isinstance(found, Unfit), code
        assert found.code == code
    # One that breaks off is an answer all the same.
    assert isinstance(reader.read(answer_marked(talk("a", "```"))), ReadAnswer)


def test_pairs_of_a_file_are_scored_as_their_texts(home: Path) -> None:
    registry = Registry.open(home)
    models = {"one": registry.resolve("judge"), "two": registry.resolve("other")}
    with open_data(registry, pairs_file(), None) as data:
        found = score_models(models, data, CPU, torch.float32)
        scales = {name: ScoreScale.of(artifact) for name, artifact in models.items()}
        figures = score_figures(data, found, scales)
        rows = list(score_rows(data, found, scales))
    assert (figures["pairs"], figures["answers"], len(rows)) == (20, 40, 40)
    wanted = {}
    for number, row in enumerate(made_rewards.comparisons(20), 1):
        for which in ("chosen", "rejected"):
            text = [*row["prompt"], {"role": "assistant", "content": row[which]}]
            wanted[number, which] = by_hand(home, "judge", text)
    for number in range(1, 21):
        both = sorted(row["scores"]["one"]["score"] for row in rows if row["row"] == number)
        assert both == pytest.approx(
            sorted(wanted[number, which] for which in ("chosen", "rejected")), abs=1e-5
        )
    in_order = np.mean([wanted[n, "chosen"] > wanted[n, "rejected"] for n in range(1, 21)])
    assert figures["models"]["one"]["preference"]["accuracy"] == pytest.approx(in_order)
    first = rows[0]["scores"]["one"]
    assert first["standard_score"] == pytest.approx((first["score"] - 0.5) / 2)
    (both_models,) = figures["agreement"]
    assert -1 <= both_models["kendall_tau"] <= 1
    assert both_models["pairs_alike"] < 1


def test_a_model_agrees_with_itself(home: Path) -> None:
    registry = Registry.open(home)
    models = {name: registry.resolve("judge") for name in ("one", "two")}
    with open_data(registry, pairs_file(), None) as data:
        found = score_models(models, data, CPU, torch.float32)
        figures = score_figures(data, found, dict.fromkeys(models))
    assert figures["agreement"] == [
        {"models": ["one", "two"], "kendall_tau": pytest.approx(1), "pairs_alike": 1.0}
    ]


def test_what_one_model_cannot_read_is_left_out_for_all(home: Path) -> None:
    registry = Registry.open(home)
    models = {name: registry.resolve(name) for name in ("judge", "short")}
    with open_data(registry, chats_file("A", "ja " * 40, " ", "B"), None) as data:
        with pytest.raises(DataError, match="1 of 4 answers cannot be scored by judge") as bad:
            score_models(models, data, CPU, torch.float32)
        assert "row 3: message 1, the assistant's, is empty" in str(bad.value.where)
        with pytest.raises(DataError, match="1 of 4 answers are too long for short") as long:
            score_models(models, data, CPU, torch.float32, faulty="drop")
        assert "row 2" in str(long.value.where)
        found = score_models(models, data, CPU, torch.float32, faulty="drop", too_long="drop")
    assert found.kept.tolist() == [True, False, False, True]
    assert found.left_out == {"too_long": 1, "empty_answer": 1}
    with (
        open_data(registry, chats_file(" "), None) as data,
        pytest.raises(DataError, match="no answer is left"),
    ):
        score_models(models, data, CPU, torch.float32, faulty="drop")


def test_a_score_that_is_no_number_stops_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "bc2.align.reward.score_answers.answer_scores",
        lambda model, batch: torch.full((batch.num_samples,), torch.nan),
    )
    registry = Registry.open(home)
    with (
        open_data(registry, chats_file("A", "B"), None) as data,
        pytest.raises(RunFailed, match="2 of 2 scores by judge are not numbers"),
    ):
        score_models({"judge": registry.resolve("judge")}, data, CPU, torch.float32)


def test_data_is_a_file_or_an_artifact_of_answers(home: Path) -> None:
    registry = Registry.open(home)
    with pytest.raises(UsageError, match="--split"), open_data(registry, chats_file("A"), "train"):
        pass
    with pytest.raises(RefError, match="is a checkpoint"), open_data(registry, "judge", None):
        pass
