"""Fine-tuning as a run: what it makes, resumes, refuses, and what the commands say of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from sft_runs import conversations, obtain, write_rows

from bc2.align.sft.packed_conversations import PackedSamples
from bc2.cli import main
from bc2.errors import Interrupted
from bc2.registry import Draft, Registry
from bc2.tokenizer.chat_layouts import TurnChat
from bc2.train.logs.log_rows import METRICS, read_rows


def bc2(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([*words])
    said = capsys.readouterr()
    return int(left.value.code or 0), said.out, said.err


def test_a_base_becomes_a_chat_model_that_answers(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = obtain()
    base = Registry.open().resolve("checkpoint/small", "checkpoint")
    assert made.role == "chat"
    assert base.digest in made.manifest.parents
    assert json.loads(made.file("chat.json").read_text()) == {"layout": "baichuan"}
    rows = [*read_rows(made.file(METRICS))]
    losses = [row["heldout_loss"] for row in rows if row["event"] == "eval"]
    assert losses[-1] < losses[0] - 1
    assert len(made.manifest.facts["heldout_sha256"]) == 64
    assert not [row for row in rows if row["event"] == "warning"]
    steps = [row for row in rows if row["event"] == "step"]
    assert all(row["ce"] == pytest.approx(row["loss"]) for row in steps)
    assert steps[-1]["samples"][1] - steps[-1]["samples"][0] < 7  # the last step is smaller
    answers = [row for row in rows if row["event"] == "sample"]
    assert {row["prompt"][:4] for row in answers} == {"What"}
    code, out, err = bc2(
        capsys, "generate", "checkpoint/chat", "What is 1 + 2?", "--chat", "--max-new-tokens", "8"
    )
    assert code == 0, err
    assert out.strip()
    assert obtain().digest == made.digest
    code, out, _ = bc2(capsys, "registry", "lineage", "checkpoint/chat")
    assert code == 0
    assert "chats/chat" in out
    assert "checkpoint/small" in out


def test_a_signal_in_a_step_ends_in_the_same_bits(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = obtain()
    registry = Registry.open()
    for artifact in registry.list("checkpoint", "chat"):
        registry.remove(artifact)
    shutil.rmtree(chat / "home" / "runs")
    plain = PackedSamples.row

    def row(self: PackedSamples, number: int) -> Any:
        if number == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, number)

    with monkeypatch.context() as stopping:
        stopping.setattr(PackedSamples, "row", row)
        with pytest.raises(Interrupted):
            obtain()
    (stopped, *_) = registry.list("checkpoint", "chat", finished=False)
    assert stopped.position is not None
    assert 0 < stopped.position.step < 10
    assert obtain().digest == straight.digest


def test_plan_watch_and_report_know_it(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = bc2(capsys, "plan", "chat.toml", "--device", "h100", "--json")
    assert code == 0, err
    assert json.loads(out)["parameters"] > 0
    obtain("chat.toml", "sft.length=4 steps")
    code, out, err = bc2(capsys, "watch", "--once", "--json")
    assert code == 0, err
    seen = json.loads(out)
    assert seen["metrics"]["ce"]["unit"] == "nats per trained token"
    assert seen["metrics"]["heldout_loss"]["value"] > 0
    code, out, err = bc2(capsys, "report", "--json")
    assert code == 0, err
    assert "held-out loss" in Path(json.loads(out)["page"]).read_text()


WRONG: dict[str, tuple[list[dict[str, Any]], int, str]] = {
    "unknown role": ([{"messages": [{"role": "robot", "content": "x"}]}], 3, "robot"),
    "two answers in a row": (
        [{"messages": [
            {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"},
            {"role": "assistant", "content": "z"},
        ]}], 3, "roles_out_of_order",
    ),
    "empty answer": (
        [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}]}],
        3, "empty_answer",
    ),
    "too long": (
        [{"messages": [
            {"role": "user", "content": "x"}, {"role": "assistant", "content": "long " * 200},
        ]}], 3, "sequence_length",
    ),
    "mixed formats": (
        [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
         {"instruction": "x", "input": "", "output": "y"}], 3, "alpaca",
    ),
    "train false everywhere": (
        [{"messages": [
            {"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "train": False},
        ]}], 3, "no_trained_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_one_clear_message(
    chat: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    rows, expected, word = WRONG[case]
    write_rows(chat / "chats.jsonl", rows)
    before = {artifact.digest for artifact in Registry.open().list("checkpoint")}
    code, out, err = bc2(capsys, "sft", "chat.toml", "--set", "chats.heldout_fraction=0")
    assert code == expected, err
    assert not out
    assert word in err
    assert "chats.jsonl" in err
    assert "to do:" in err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert {artifact.digest for artifact in Registry.open().list("checkpoint")} == before
    assert not [*(chat / "home").glob("staging/*")]


def test_broken_unicode_is_named(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (chat / "chats.jsonl").write_bytes(b'{"messages": [{"role": "user", "content": "\xff"}]}\n')
    code, _, err = bc2(capsys, "sft", "chat.toml")
    assert code == 3
    assert "chats.jsonl" in err


def test_a_model_without_a_layout_is_refused(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (chat / "chat.toml").read_text().replace('chat_layout = "baichuan"\n', "")
    (chat / "chat.toml").write_text(text)
    code, _, err = bc2(capsys, "sft", "chat.toml")
    assert code == 3
    assert "no chat layout" in err
    assert "sft.chat_layout" in err


def test_a_base_of_another_vocabulary_is_refused(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = bc2(capsys, "sft", "chat.toml", "--set", "model.vocab_size=512")
    assert code == 2
    assert "vocab_size" in err


def test_without_init_there_is_nothing_to_fine_tune(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (chat / "chat.toml").read_text().replace('init = "checkpoint/small"\n', "")
    (chat / "chat.toml").write_text(text)
    code, _, err = bc2(capsys, "sft", "chat.toml")
    assert code == 2
    assert "init" in err


@pytest.mark.parametrize(
    ("setting", "left"), [("faulty", "empty_answer"), ("too_long", "too long")]
)
def test_what_is_left_out_is_counted(
    chat: Path, capsys: pytest.CaptureFixture[str], setting: str, left: str
) -> None:
    rows = [json.loads(line) for line in (chat / "chats.jsonl").read_text().splitlines()]
    bad = "" if setting == "faulty" else "long " * 200
    rows[3]["messages"][1]["content"] = bad
    write_rows(chat / "chats.jsonl", rows)
    options = [f"sft.{setting}=drop", "chats.heldout_fraction=0", "sft.length=2 steps"]
    code, _, err = bc2(capsys, "sft", "chat.toml", *[w for o in options for w in ("--set", o)])
    assert code == 0, err
    assert f"left out: 1 ({left})" in err
    assert "199 conversations" in err
    assert "no conversation is held out: there is no held-out loss" in err


def test_what_is_left_out_of_held_out_ones_is_counted(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (chat / "chats.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["messages"][1]["content"] = ""
    write_rows(chat / "chats.jsonl", rows)
    options = ["sft.faulty=drop", "chats.heldout_fraction=0.5", "sft.length=2 steps"]
    code, _, err = bc2(capsys, "sft", "chat.toml", *[w for o in options for w in ("--set", o)])
    assert code == 0, err
    trained, held_out = re.findall(r"left out: (\d+) \(empty_answer\)", err)
    assert int(trained) + int(held_out) == 100
    assert f"held-out ones: left out: {held_out} " in err


def test_long_conversations_keep_their_first_rounds(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (chat / "chats.jsonl").read_text().splitlines()]
    rows[0]["messages"][3]["content"] = "long " * 200
    rows[1]["messages"][1]["content"] = "long " * 200
    write_rows(chat / "chats.jsonl", rows)
    options = ["sft.too_long=rounds", "chats.heldout_fraction=0", "sft.length=2 steps"]
    code, _, err = bc2(capsys, "sft", "chat.toml", *[w for o in options for w in ("--set", o)])
    assert code == 0, err
    assert "1 keep only the first rounds that fit" in err
    assert "left out: 1 (too long)" in err


def test_adapters_are_trained_beside_the_base(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = obtain("chat.toml", "sft.lora.rank=2", "sft.length=8 steps")
    assert made.role == "adapter"
    assert {"adapter.json", "adapter_config.json", "chat.json"} <= {*made.files()}
    code, out, err = bc2(
        capsys, "generate", made.ref, "What is 1 + 2?", "--chat", "--max-new-tokens", "8"
    )
    assert code == 0, err
    assert out.strip()


def test_held_out_messages_of_users_alone_are_learnt_and_answered(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Line {n} is read."}]} for n in range(120)]
    write_rows(chat / "chats.jsonl", rows)
    options = ["sft.train_on=all", "sft.length=2 steps"]
    code, _, err = bc2(capsys, "sft", "chat.toml", *[w for o in options for w in ("--set", o)])
    assert code == 0, err
    (made,) = Registry.open().list("checkpoint", "chat")
    answers = [row for row in read_rows(made.file(METRICS)) if row["event"] == "sample"]
    assert answers
    assert all(row["prompt"].endswith("is read.") for row in answers)


@pytest.mark.parametrize("weight", [1e39, 1e-50, 0])
def test_weights_that_fp32_cannot_sum_are_named(
    chat: Path, capsys: pytest.CaptureFixture[str], weight: float
) -> None:
    rows = [json.loads(line) for line in (chat / "chats.jsonl").read_text().splitlines()]
    rows[3]["messages"][1]["weight"] = weight
    write_rows(chat / "chats.jsonl", rows)
    code, _, err = bc2(capsys, "sft", "chat.toml")
    assert code == 3
    assert f"`weight` is {weight:g}" in err
    assert "chats.jsonl:4" in err


def test_a_reward_model_is_no_base(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry.open()
    base = registry.resolve("checkpoint/small", "checkpoint")
    draft = Draft("checkpoint", "judge", 64 * "b", (base.digest,), role="reward")
    with registry.stage(draft) as staged:
        for name in base.files():
            shutil.copyfile(base.path / name, staged.path / name)
        judge = staged.publish()
    code, _, err = bc2(capsys, "sft", "chat.toml", "--set", f"sft.init={judge.digest[:16]}")
    assert code == 4
    assert "is a reward model" in err
    assert "to do:" in err


def test_of_many_rounds_few_are_rendered(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [
        {"role": role, "content": f"{n} {role}"}
        for n in range(300)
        for role in ("user", "assistant")
    ]
    rows = [{"messages": turns}, *conversations(40)]
    write_rows(chat / "chats.jsonl", rows)
    lengths = []
    plain = TurnChat.render

    def render(self: TurnChat, messages: Any, **options: Any) -> Any:
        found = plain(self, messages, **options)
        lengths.append((len(messages), len(found.ids)))
        return found

    monkeypatch.setattr(TurnChat, "render", render)
    obtain("chat.toml", "sft.too_long=rounds", "chats.heldout_fraction=0", "sft.length=2 steps")
    long = [(messages, ids) for messages, ids in lengths if messages > 4]
    assert len(long) < 20
    fitting = [messages for messages, ids in long if ids - 1 <= 64]
    shortest = min(messages for messages, ids in long if ids - 1 > 64)
    assert max(fitting) == shortest - 2


@pytest.mark.parametrize(
    ("times", "length", "word"),
    [("1", "1000000 epochs", "10,000 epochs"), ("1e6", "2 epochs", "chats.sources.times")],
)
def test_more_than_can_be_packed_is_refused(
    chat: Path, capsys: pytest.CaptureFixture[str], times: str, length: str, word: str
) -> None:
    text = (chat / "chat.toml").read_text()
    (chat / "chat.toml").write_text(text.replace('"made"', f'"made"\ntimes = {times}'))
    write_rows(chat / "chats.jsonl", conversations(1500))
    code, _, err = bc2(capsys, "sft", "chat.toml", "--set", f"sft.length={length}")
    assert code == 2, err
    assert word in err
    assert err.count("error:") == 1
