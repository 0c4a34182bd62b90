"""A tokenizer.json with a chat layout, from token shards to generation, evaluation and reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warmed
from made_json_tokenizers import qwen_like
from typer.testing import CliRunner

from bc2 import recipe
from bc2.data.shards import TokenShards
from bc2.generate.load import open_model
from bc2.model.store import load_config
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.registry.importing import import_directory
from bc2.tokenizer.chat_file import chat_of
from bc2.tokenizer.tokenizer import Tokenizer

#: Rows of the model beyond the pieces of its tokenizer, as Qwen's models have them.
PADDED = 1280

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def foreign(small: Path) -> Artifact:
    """A registered tokenizer.json with a chat layout."""
    folder = small / "foreign"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(qwen_like())
    (folder / "chat.json").write_text('{"layout": "chatml"}')
    return import_directory(Registry.open(), folder, "tokenizer", "foreign")


@pytest.fixture
def model(small: Path, foreign: Artifact) -> Artifact:
    """Trained for a few steps on shards in its ids."""
    settings = [
        f"tokens.tokenizer={foreign.ref}", f"model.vocab_size={PADDED}",
        "pretrain.length=4 steps", "pretrain.sample_prompts=1", "pretrain.schedule.warmup=1 steps",
    ]  # fmt: skip
    session = Session(Registry.open())
    return session.obtain(
        "checkpoint", recipe.load(small / "small.toml", settings), command=["bc2"]
    )


def bc2(*args: object) -> Any:
    command = [sys.executable, "-P", "-m", "bc2", *map(str, args), "--json"]
    done = warmed.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_it_does_not_give_back_is_said_where_it_comes_in_and_is_used(
    small: Path, foreign: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "this tokenizer does not give back characters that NFC replaces; accents"
    app = import_module("bc2.commands.registry").app
    arguments = ["import", str(small / "foreign"), "--kind", "tokenizer", "--name", "again"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert said in " ".join(done.output.split())
    loaded = recipe.load(small / "small.toml", [f"tokens.tokenizer={foreign.ref}"])
    Session(Registry.open()).obtain("tokens", loaded)
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_model_with_it_trains_generates_and_is_evaluated(
    small: Path, foreign: Artifact, model: Artifact
) -> None:
    tokenizer = Tokenizer.load(foreign.path)
    # The shards are in its ids, each document ended by its end of text.
    registry = Registry.open()
    (tokens,) = [one for one in registry.parents(model) if one.kind == "tokens"]
    shards = TokenShards.open(tokens.path)
    assert (shards.vocab_size, shards.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    assert shards.tokenizer == tokenizer.digest
    source = shards.sources("train")[0]
    ids = np.fromfile(next((tokens.path / "train" / source).glob("*.bin")), "<u2")[:2000]
    assert not {tokenizer.id_of(f"<|im_{end}|>") for end in ("start", "end")} & set(ids.tolist())
    # The checkpoint has both files under their own names, and nothing under another.
    assert {"tokenizer.json", "chat.json"} <= set(model.files())
    assert "tokenizer.model" not in model.files()
    assert model.file("tokenizer.json").read_bytes() == qwen_like()
    with open_model(model, torch.device("cpu"), torch.float32) as loaded:
        assert loaded.tokenizer.digest == tokenizer.digest
        assert chat_of(model, loaded.tokenizer).name == "chatml"
    made = bc2("generate", model.ref, "import os", "--max-new-tokens", 12, "--temperature", 0)
    assert made["results"][0]["tokens"] > 0
    (small / "text.jsonl").write_text('{"text": "def f(x):\\n    return x\\n", "lang": "en"}\n')
    figures = bc2("eval", model.ref, "--bench", "text", "--data", small / "text.jsonl")
    assert figures["total"]["tokens"] == len(tokenizer.encode("def f(x):\n    return x\n"))
    assert figures["total"]["bytes"] == 23


def test_ids_without_a_piece_are_shown_and_do_no_harm(model: Artifact) -> None:
    """A model whose head prefers a row that no piece has."""
    from safetensors.torch import load_file, save_file

    config = load_config(model.path)
    assert config.vocab_size == PADDED
    folder = Path("padded")
    folder.mkdir()
    for name in ("model.json", "tokenizer.json"):
        (folder / name).write_bytes(model.file(name).read_bytes())
    state = load_file(model.file("model.safetensors"))
    hidden = state["model.norm.weight"]
    state["model.norm.weight"] = torch.zeros_like(hidden)
    save_file(state, folder / "model.safetensors")
    flat = import_directory(Registry.open(), folder, "checkpoint", "padded")
    # All logits are equal, so that draws are of any id.
    options = ("--max-new-tokens", 60, "--temperature", 1, "--seed", 1, "--logprobs", 2)
    result = bc2("generate", flat.ref, "a", *options)["results"][0]
    drawn = [one["id"] for one in result["log_probs"]]
    beyond = [i for i in drawn if i >= Tokenizer.from_bytes(qwen_like()).vocab_size]
    assert beyond, "no id without a piece was drawn"
    assert result["text"].count("\ufffd") >= len(beyond)
    assert all(one["piece"] == "\ufffd" for one in result["log_probs"] if one["id"] in beyond)


def test_compression_beside_it(small: Path, foreign: Artifact) -> None:
    path = foreign.path / "tokenizer.json"
    compared = bc2("train-tokenizer", "small.toml", "--report", "--against", path)
    rows = compared["rows"]
    assert list(compared["lost"]) == [str(path)]
    row = next(row for row in rows if row["model"] == str(path) and row["group"] == "total")
    assert row["vocab_size"] == Tokenizer.load(path).vocab_size
    assert row["tokens"] > 0
    assert row["unknown"] == 0
