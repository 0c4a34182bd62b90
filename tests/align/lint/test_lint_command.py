"""`bc2 data lint` from the command line: exit codes, what is printed, and wrong recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_lints import asked
from sft_runs import write_rows

from bc2.cli import main
from bc2.registry import Registry

#: A base that is not there yet.
BASE = """\
name = "other"

[corpus]
[[corpus.sources]]
name = "docs"
environment = "python-docs"

[model]
vocab_size = 512
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
context_length = 64

[pretrain]
length = "4 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
schedule = { warmup = "1 steps" }
"""


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["data", "lint", *words])
    said = capsys.readouterr()
    code = ended.value.code
    return code if isinstance(code, int) else 0, said.out, said.err


def test_a_good_recipe_is_looked_at_and_nothing_is_trained(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "chat.toml", "--page", "page.html")
    assert code == 0
    assert "no errors in 200 conversations" in out
    assert "packed as alone  yes: " in out
    page = (chat / "page.html").read_text("utf-8")
    assert "Packed equals alone." in page
    assert {one.name for one in Registry.open().list("checkpoint")} == {"small"}


def test_errors_have_exit_code_3_and_rows(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [asked(f"What is {n}?", "" if n == 7 else f"{n}.") for n in range(60)]
    write_rows(chat / "chats.jsonl", rows)
    code, out, _ = run(capsys, "chat.toml", "--json")
    found = json.loads(out)
    assert (code, found["errors"]) == (3, 1)
    (empty,) = [one for one in found["findings"] if one["code"] == "empty_answer"]
    assert [one["row"] for one in empty["examples"]] == [8]
    code, out, _ = run(capsys, "chat.toml", "--set", "sft.faulty=drop")
    assert code == 0
    assert "empty_answer 1 left out" in " ".join(out.split())


def test_one_row_is_shown_alone(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "chat.toml", "--row", "made:1")
    assert code == 0
    assert "made, chats.jsonl, row 1: " in out
    assert "<reserved_106>What is 0 + 0?<reserved_107>0<reserved_106>→</s>Sure?" in out
    code, _, told = run(capsys, "chat.toml", "--row", "made:9999")
    assert code == 3
    assert "row made:9999" in told


def test_a_recipe_without_sft_says_what_to_do(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (chat / "chat.toml").read_text()
    (chat / "alone.toml").write_text(text[: text.index("[sft]")])
    code, _, told = run(capsys, "alone.toml")
    assert code == 2
    assert "it has no [sft]" in told


def test_a_base_that_is_not_trained_yet_is_not_trained_here(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (chat / "chat.toml").read_text()
    (chat / "base.toml").write_text(BASE)
    (chat / "chat.toml").write_text(text.replace("checkpoint/small", "base.toml"))
    code, _, told = run(capsys, "chat.toml")
    assert code == 2
    assert "is not trained yet" in told


#: Pairs beside the conversations, and two verbs that read them.
PAIRS = """
[[pairs.sources]]
name = "better"
path = "pairs.jsonl"

[pairs]
heldout_fraction = 0.2

[{verb}]
init = "checkpoint/small"
chat_layout = "baichuan"
length = "1 epochs"
batch_tokens = 128
micro_batch = 1
sequence_length = 64
precision = "fp32"
device = "cpu"
"""


@pytest.fixture
def with_pairs(chat: Path) -> Path:
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"{n}.", "rejected": f"Not {n}."} for n in range(29)
    ]
    write_rows(chat / "pairs.jsonl", rows)
    return chat


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_pairs_of_a_recipe_are_looked_at(
    with_pairs: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    text = (with_pairs / "chat.toml").read_text() + PAIRS.format(verb=verb)
    (with_pairs / "both.toml").write_text(text)
    code, out, _ = run(capsys, "both.toml", "--page", "pairs.html")
    assert code == 0
    assert "no errors in 29 pairs" in out
    assert "all 29 29 0 0.0%" in " ".join(out.split())
    assert "Packed equals alone." in (with_pairs / "pairs.html").read_text("utf-8")
    code, out, _ = run(capsys, "both.toml", "--section", "sft")
    assert "no errors in 200 conversations" in out
    code, out, _ = run(capsys, "both.toml", "--row", "better:1")
    assert "better, pairs.jsonl, row 1, rejected: " in out
    assert {one.name for one in Registry.open().list("checkpoint")} == {"small"}


def test_a_section_that_a_recipe_lacks_is_named(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = run(capsys, "chat.toml", "--section", "dpo")
    assert code == 2
    assert "it has no [dpo]" in told
