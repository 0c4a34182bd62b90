"""What a training verb makes of its options, and what it finds out before any work."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from bc2.commands import pretrain

from bc2 import cli
from bc2.launch.rank_options import Ranks
from bc2.launch.training_verb import TrainingRequest
from bc2.registry import Registry

REQUEST = TrainingRequest(
    "pretrain", "r.toml", ("a.b=1", "c.d=x y"), deterministic=True, ranks=Ranks(nproc=2), json=True
)


def test_ranks_get_the_recipe_its_overrides_and_the_output() -> None:
    assert REQUEST.rank_arguments == [
        "pretrain", "r.toml", "--set", "a.b=1", "--set", "c.d=x y", "--deterministic", "--json",
    ]  # fmt: skip


def test_the_resume_command_asks_for_the_same_ranks_and_not_to_begin_anew() -> None:
    assert REQUEST.resume_command == [
        "bc2", "pretrain", "r.toml", "--set", "a.b=1", "--set", "c.d=x y", "--deterministic",
        "--nproc", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("value", ["a = b, c", "-1", "--fresh", "'x'=\"y z\"", "", "$HOME `x`\n"])
def test_a_rank_reads_every_argument_as_it_was_given(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[TrainingRequest] = []
    monkeypatch.setattr(pretrain, "run_training", read.append)
    given = TrainingRequest(
        "pretrain", "-r.toml", (f"description={value}", value), fresh=True, quiet=True, debug=True
    )
    with pytest.raises(SystemExit):
        cli.main(given.rank_arguments)
    # A path that begins with a dash is taken for options.
    assert read == [replace(given, recipe="./-r.toml")]
    with pytest.raises(SystemExit):
        cli.main(shlex.split(shlex.join(given.resume_command))[1:])
    assert read[1] == replace(read[0], fresh=False, quiet=False, debug=False)


def test_a_rank_resumes_with_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_LAUNCHED", "--nproc 4 --max-restarts 2")
    asked = TrainingRequest("pretrain", "tiny", fresh=True)
    assert asked.resume_command == [
        "bc2",
        "pretrain",
        "tiny",
        "--nproc",
        "4",
        "--max-restarts",
        "2",
    ]


def test_a_run_that_another_verb_trains_is_resumed_by_that_verb() -> None:
    again = ("bc2", "ladder", "r.toml", "--nproc", "2")
    asked = TrainingRequest("pretrain", "r.toml", ("a.b=1",), ranks=Ranks(nproc=2), instead=again)
    assert asked.resume_command == list(again)
    assert asked.rank_arguments == ["pretrain", "r.toml", "--set", "a.b=1"]


HUGE = """\
[corpus]
heldout_fraction = 0.2
[[corpus.sources]]
name = "text"
path = "text"

[tokenizer]
vocab_size = 600

[model]
vocab_size = 600
hidden_size = 65536
intermediate_size = 131072
num_layers = 96
num_heads = 64

[pretrain]
length = "4000 steps"
batch_tokens = 4096
micro_batch = 1
"""


@pytest.fixture
def huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with text that is there, and a model of trillions of bytes."""
    (tmp_path / "text").mkdir()
    source = inspect.getsource(inspect)
    rows = [{"text": source[at : at + 2000]} for at in range(0, 80_000, 2000)]
    (tmp_path / "text" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "huge.toml").write_text(HUGE)
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--nproc", "2", "--set", "pretrain.batch_tokens=8192"],
        ["--set", "pretrain.micro_batch='auto'"],
    ],
)
def test_a_model_that_cannot_fit_is_refused_before_anything_is_made(
    huge: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["pretrain", "huge.toml", *more])
    said = capsys.readouterr().err
    assert caught.value.code == 6, said
    assert "GB" in said
    assert "making" not in said
    assert Registry.open().list() == []


def test_a_ref_that_is_not_there_is_found_before_anything_is_made(
    huge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (huge / "r.toml").write_text(HUGE + '\n[tokens]\ntokenizer = "nowhere"\n')
    with pytest.raises(SystemExit) as caught:
        cli.main(["data", "tokenize", "r.toml"])
    said = capsys.readouterr().err
    assert caught.value.code == 4, said
    assert "nowhere" in said
    assert "making" not in said


def test_more_ranks_than_gpus_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(SystemExit) as left:
        cli.main(["pretrain", "tiny", "--nproc", "2", "--set", "pretrain.micro_batch=1"])
    assert left.value.code == 2
    assert "error: --nproc 2 needs as many GPUs, and 1 can be seen" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
