"""Conversations become prompts by a model's layout, within its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
from made_json_tokenizers import qwen_like

from bc2.errors import Bc2Error, DataError, UsageError
from bc2.generate.conversations import Conversations, messages_of
from bc2.generate.prompts import Prompt, prompt_requests, read_prompts
from bc2.generate.sampling_config import SamplingConfig
from bc2.tokenizer.chat import Chat
from bc2.tokenizer.chat_file import chat_named
from bc2.tokenizer.tokenizer import Tokenizer

SETTINGS = SamplingConfig(max_new_tokens=16)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


LONG = (
    said("system", "Be short."),
    said("user", "What is two and two? " * 5), said("assistant", "Four."),
    said("user", "And three?"), said("assistant", "Five."),
    said("user", "And four?"),
)  # fmt: skip


@pytest.fixture(scope="module")
def chatml() -> Chat:
    return chat_named("chatml", Tokenizer.from_bytes(qwen_like()))


@pytest.fixture(scope="module")
def baichuan() -> Chat:
    return chat_named("baichuan", Tokenizer.from_bytes(made_checkpoints.tokenizer_bytes()))


def test_a_prompt_is_the_users_turn(chatml: Chat) -> None:
    prompt = Prompt("hello <|im_end|>")
    plain = Conversations(chatml, 512).ids(prompt, SETTINGS, "prompt 0")
    assert plain == chatml.prompt([said("user", "hello <|im_end|>")])
    spoken = Conversations(chatml, 512, "Be short.").ids(prompt, SETTINGS, "prompt 0")
    assert spoken == chatml.prompt([LONG[0], said("user", "hello <|im_end|>")])


def test_a_system_message_of_its_own_counts(chatml: Chat) -> None:
    other = Conversations(chatml, 512, "Be long.")
    own = other.ids(Prompt("", messages=LONG), SETTINGS, "x")
    assert own == chatml.prompt(LONG)
    without = other.ids(Prompt("", messages=LONG[1:]), SETTINGS, "x")
    assert without == chatml.prompt([said("system", "Be long."), *LONG[1:]])


def test_what_falls_out_of_the_window_is_said(
    baichuan: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = len(baichuan.prompt(LONG))
    prompt = Prompt("", messages=LONG)
    assert len(Conversations(baichuan, whole + 16).ids(prompt, SETTINGS, "x")) == whole
    assert capsys.readouterr().err == ""
    kept = Conversations(baichuan, whole + 6).ids(prompt, SETTINGS, "c.jsonl:4")
    assert kept == baichuan.prompt([LONG[0], *LONG[3:]])
    told = capsys.readouterr().err
    assert f"c.jsonl:4: {whole - len(kept)} of {whole} tokens are left out" in told
    assert f"the window of {whole + 6} has room for {whole - 10} beside the answer" in told


def test_a_layout_that_leaves_nothing_out(chatml: Chat) -> None:
    whole = chatml.prompt(LONG)
    assert Conversations(chatml, 40).ids(Prompt("", messages=LONG), SETTINGS, "x") == whole


@pytest.mark.parametrize(("own", "error"), [({}, UsageError), ({"max_new_tokens": 16}, DataError)])
def test_an_answer_as_long_as_the_window(
    chatml: Chat, own: dict[str, Any], error: type[Bc2Error]
) -> None:
    with pytest.raises(error, match="an answer of 16 tokens leaves nothing of the window of 16"):
        Conversations(chatml, 16).ids(Prompt("a", own), SETTINGS, "x")


def test_requests_show_the_last_message(chatml: Chat) -> None:
    prompts = [Prompt("one"), Prompt("And four?", {"top_k": 3}, "c:1", LONG)]
    talk = Conversations(chatml, 512)
    first, second = prompt_requests(prompts, chatml.tokenizer, SETTINGS, talk)
    assert first.prompt == chatml.prompt([said("user", "one")])
    assert (second.prompt, second.text) == (chatml.prompt(LONG), "And four?")
    assert (second.settings.top_k, second.where, second.between) == (3, "c:1", "\n\n")


def test_the_assistant_has_the_last_word(chatml: Chat) -> None:
    prompt = Prompt("", {}, "c:2", LONG[:3])
    with pytest.raises(DataError, match="the last message is the assistant's") as info:
        list(prompt_requests([prompt], chatml.tokenizer, SETTINGS, Conversations(chatml, 512)))
    assert info.value.where == "c:2"


@pytest.mark.parametrize(
    ("value", "what", "where"),
    [
        ("hello", "no list of messages", "c:1"),
        ([], "a conversation without messages", "c:1"),
        ([{"role": "user"}], "not an object with a `role`", "c:1, message 0"),
        (["a"], "not an object with a `role`", "c:1, message 0"),
        ([said("user", "a"), said("tool", "b")], "unknown role 'tool'", "c:1, message 1"),
        ([{**said("user", "a"), "contents": "b"}], "unknown key 'contents'", "c:1, message 0"),
        ([said("user", "a"), said("system", "b")], "a system message after", "c:1, message 1"),
    ],
)
def test_what_is_no_conversation(value: Any, what: str, where: str) -> None:
    with pytest.raises(DataError, match=what) as info:
        messages_of(value, "c:1")
    assert info.value.where == where


ONE = '[{"role": "user", "content": "a"}]'


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("c.jsonl", f'{{"messages": {ONE}, "seed": 3}}\n{{"prompt": "b"}}\n', ["a", "b"]),
        ("c.json", ONE, ["a"]),
        ("c.json", f'{{"messages": {ONE}, "seed": 3}}', ["a"]),
        ("c.json", f'[{ONE},\n {{"messages": {ONE}}}, {{"prompt": "b"}}]', ["a", "a", "b"]),
    ],
)
def test_files_of_conversations(tmp_path: Path, name: str, content: str, found: list[str]) -> None:
    file = tmp_path / name
    file.write_text(content)
    prompts = list(read_prompts(file, chat=True))
    assert [prompt.text for prompt in prompts] == found
    for prompt in prompts:
        own = None if prompt.text == "b" else (said("user", "a"),)
        assert prompt.messages == own
        assert (prompt.where or "").startswith(str(file))
    assert prompts[0].settings == ({"seed": 3} if "seed" in content else {})


@pytest.mark.parametrize(
    ("name", "content", "chat", "what"),
    [
        ("c.jsonl", f'{{"messages": {ONE}}}', False, "a conversation"),
        ("c.jsonl", f'{{"messages": {ONE}, "prompt": "b"}}', True, "both a `prompt` and"),
        ("c.jsonl", f'{{"messages": {ONE}, "sed": 1}}', True, "unknown key 'sed'"),
        ("c.jsonl", "{}", True, "with `messages`"),
        ("c.json", ONE, False, "cannot read prompts from .json"),
        ("c.json", "[]", True, "no conversation in the file"),
        ("c.json", "[1]", True, "not an object"),
        ("c.json", "{", True, "an object over several lines"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, chat: bool, what: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(DataError, match=what) as info:
        list(read_prompts(file, chat=chat))
    assert str(file) in (info.value.where or "")
