"""`bc2 generate` with a model that has a chat layout and generation settings of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import torch
import warmed
from made_json_tokenizers import qwen_like

from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.layout import ASSISTANT_ID, USER_ID
from bc2.tokenizer.tokenizer import Tokenizer

Bc2 = Callable[..., Any]

GREEDY = ("--temperature", 0, "--max-new-tokens", 12)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: plain, without a layout; chatml, with one; wilful, with settings too; baichuan."""
    home = tmp_path_factory.mktemp("home")
    qwen = qwen_like()
    size = Tokenizer.from_bytes(qwen).vocab_size

    def register(name: str, **files: bytes) -> None:
        model = made_checkpoints.drawn(window=128, vocab_size=size)
        named = {f"{file}.json": content for file, content in files.items()}
        made_checkpoints.register(home, name, model, tokenizer=qwen, files=named)

    register("plain")
    register("chatml", chat=b'{"layout": "chatml"}')
    register("wilful", generation=b'{"temperature": 0.0, "max_new_tokens": 5, "end_ids": [9]}')
    made_checkpoints.register(
        home, "baichuan", made_checkpoints.drawn(window=96),
        files={"chat.json": b'{"layout": "baichuan"}'},
    )  # fmt: skip
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    monkeypatch.chdir(tmp_path)


def written(content: Any, name: str = "c.jsonl") -> str:
    rows = content if isinstance(content, str) else json.dumps(content)
    Path(name).write_text(rows)
    return name


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_prompt_is_answered_as_a_user_by_the_layout(bc2: Bc2) -> None:
    """As transformers would be given it: the same text, with the markers as special tokens."""
    chat = chat_named("chatml", Tokenizer.from_bytes(qwen_like()))
    found = bc2("generate", "--chat", "chatml", "hello", *GREEDY, "--json", "--logprobs", 0).json
    (answer,) = found["results"]
    ids = [one["id"] for one in answer["log_probs"]]
    assert answer["prompt"] == "hello"
    assert answer["text"] == chat.generated_bytes(ids).decode("utf-8", "replace")
    # With the system's message before it, or as a plain text, the answer is another one.
    others = [
        bc2("generate", "chatml", "hello", "--chat", "--system", "Be short.", *GREEDY, "--json"),
        bc2("generate", "chatml", "hello", *GREEDY, "--json"),
    ]
    assert answer["text"] not in [other.json["results"][0]["text"] for other in others]
    both = written({"messages": [said("system", "Be short."), said("user", "hello")]})
    same = bc2("generate", "chatml", "--chat", "--file", both, *GREEDY, "--json")
    assert same.json["results"][0]["text"] == others[0].json["results"][0]["text"]


def test_the_answer_alone_and_what_people_see(bc2: Bc2) -> None:
    quiet = bc2("generate", "chatml", "hello", "--chat", *GREEDY, "--quiet")
    shown = bc2("generate", "chatml", "hello", "--chat", *GREEDY)
    assert shown.out == f"hello\n\n{quiet.out}"
    assert "<|im" not in shown.out


def test_a_terminal_shows_the_same(bc2: Bc2) -> None:
    args = ["generate", "chatml", "hello", "--chat", *map(str, GREEDY)]
    terminal, end = os.openpty()
    command = [sys.executable, "-P", "-m", "bc2", *args]
    with warmed.Popen(command, stdout=end, stderr=subprocess.PIPE) as run:
        assert run.wait(timeout=120) == 0, run.stderr.read()
    os.set_blocking(terminal, False)
    shown = os.read(terminal, 1 << 16).decode().replace("\r\n", "\n")
    os.close(terminal)
    os.close(end)
    assert shown == bc2(*args).out


def test_ends_of_the_layout_end_an_answer(bc2: Bc2, home: Path) -> None:
    """A model that says nothing but the end of a turn, which is no text."""
    tokenizer = Tokenizer.from_bytes(qwen_like())
    end = tokenizer.special_ids["<|im_end|>"]
    model = made_checkpoints.drawn(window=128, vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.zero_()
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[end, 0] = 1.0
    files = {"chat.json": b'{"layout": "chatml"}'}
    made_checkpoints.register(home, "ending", model, tokenizer=qwen_like(), files=files)
    asked = ("generate", "ending", "hello", *GREEDY, "--json")
    tokens = []
    for options in (("--chat",), ("--chat", "--ignore-eos"), ()):
        (answer,) = bc2(*asked, *options).json["results"]
        assert answer["text"] == ""
        tokens.append((answer["tokens"], answer["finish_reason"]))
    assert tokens == [(0, "stop_id"), (12, "length"), (12, "length")]


def test_settings_of_the_model(bc2: Bc2) -> None:
    first, again = (bc2("generate", "wilful", "hello", "--json", "--seed", n) for n in (1, 2))
    assert first.json["results"] == again.json["results"]  # greedy
    assert first.json["results"][0]["tokens"] == 5
    told = "settings of checkpoint/wilful: temperature 0, max_new_tokens 5, end_ids 9\n"
    assert told in first.err
    # An option goes before them, and a prompt's own setting before both.
    longer = bc2("generate", "wilful", "hello", "--max-new-tokens", 7, "--json")
    assert longer.json["results"][0]["tokens"] == 7
    assert "settings of checkpoint/wilful: temperature 0, end_ids 9\n" in longer.err
    file = written({"prompt": "hello", "max_new_tokens": 3})
    own = bc2("generate", "wilful", "--file", file, "--max-new-tokens", 7, "--json")
    assert own.json["results"][0]["tokens"] == 3
    drawn = [
        bc2("generate", "wilful", "hello", "--temperature", 1, "--seed", n, "--json").json
        for n in (1, 2)
    ]
    assert drawn[0]["results"] != drawn[1]["results"]
    assert "settings of" not in bc2("generate", "plain", "hello", *GREEDY).err


def test_end_ids_of_the_model_end_an_answer(bc2: Bc2, home: Path) -> None:
    asked = ("hello", *GREEDY, "--json", "--logprobs", 0)
    (free,) = bc2("generate", "plain", *asked).json["results"]
    end = free["log_probs"][2]["id"]
    model = made_checkpoints.drawn(window=128, vocab_size=Tokenizer(qwen_like()).vocab_size)
    settings = {"generation.json": json.dumps({"end_ids": [end]}).encode()}
    made_checkpoints.register(home, "ends", model, tokenizer=qwen_like(), files=settings)
    (ended,) = bc2("generate", "ends", *asked).json["results"]
    assert (ended["finish_reason"], ended["end_log_prob"]["id"]) == ("stop_id", end)
    assert ended["tokens"] == [one["id"] for one in free["log_probs"]].index(end)
    on = bc2("generate", "ends", *asked, "--ignore-eos")
    assert on.json["results"] == [free]
    assert "settings of" not in on.err


def test_markers_that_are_ordinary_pieces_are_no_text(bc2: Bc2) -> None:
    """Released Baichuan models have them so; a made tokenizer here has them as control tokens."""
    tokenizer = Tokenizer.from_bytes(made_checkpoints.tokenizer_bytes())
    chat = chat_named("baichuan", tokenizer)
    ids = tokenizer.encode("four")
    chat.markers = frozenset([USER_ID, ASSISTANT_ID, ids[0]])
    assert chat.generated_bytes([*ids, USER_ID]) == tokenizer.decode_bytes(ids[1:])


def test_what_falls_out_is_said(bc2: Bc2) -> None:
    talk = [said("user", "what is seven and one " * 3), said("assistant", "eight")] * 6
    file = written({"messages": [*talk, said("user", "and two?")]})
    run = bc2("generate", "baichuan", "--chat", "--file", file, *GREEDY, "--json")
    assert run.json["results"][0]["prompt"] == "and two?"
    assert f"{file}:1: " in run.err
    assert "tokens are left out, the oldest: the window of 96 has room for 84" in run.err


@pytest.mark.parametrize(
    ("args", "code", "what"),
    [
        (("plain", "hello", "--chat"), 3, "checkpoint/plain has no chat layout"),
        (("chatml", "hello", "--system", "x"), 2, "--system is a message of a chat"),
        (("chatml", "--file", "c.jsonl"), 3, "add --chat"),
        (("chatml", "--chat", "--file", "last.jsonl"), 3, "the last message is the assistant's"),
        (("chatml", "--chat", "--file", "role.jsonl"), 3, "unknown role 'tool'"),
        (("chatml", "--chat", "hello " * 200), 3, "tokens and the model reads 128"),
        (("chatml", "--chat", "a", "--max-new-tokens", 128), 2, "leaves nothing of the window"),
    ],
)
def test_wrong_input(bc2: Bc2, args: tuple[Any, ...], code: int, what: str) -> None:
    written({"messages": [said("user", "a")]})
    written({"messages": [said("user", "a"), said("assistant", "b")]}, "last.jsonl")
    written({"messages": [said("tool", "a")]}, "role.jsonl")
    run = bc2("generate", *GREEDY, *args)
    assert (run.code, run.out) == (code, ""), run.err
    assert what in run.err


def test_an_end_outside_of_the_vocabulary(bc2: Bc2, home: Path) -> None:
    settings = {"generation.json": b'{"end_ids": [70000]}'}
    made_checkpoints.register(home, "odd", files=settings)
    run = bc2("generate", "odd", "hello")
    assert run.code == 3
    assert "the model's answers end at token 70000" in run.err
