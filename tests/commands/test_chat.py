"""`bc2 chat` through a pipe: one answer for each line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_checkpoints
import pytest
import warmed
from made_json_tokenizers import qwen_like

from bc2.tokenizer.tokenizer import Tokenizer

SHORT = ("--max-new-tokens", "12", "--temperature", "0")
Chat = Callable[..., Any]
BAICHUAN = {"chat.json": b'{"layout": "baichuan"}'}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain, without a layout; chatml; baichuan; says-7; wilful, with settings of its own."""
    home = tmp_path_factory.mktemp("home")
    size = Tokenizer.from_bytes(qwen_like()).vocab_size
    register = made_checkpoints.register
    register(home, "plain")
    register(
        home, "chatml", made_checkpoints.drawn(window=128, vocab_size=size), tokenizer=qwen_like(),
        files={"chat.json": b'{"layout": "chatml"}'},
    )  # fmt: skip
    register(home, "baichuan", made_checkpoints.drawn(window=96), files=BAICHUAN)
    register(home, "says-7", made_checkpoints.saying("#### 7", 96), files=BAICHUAN)
    wilful = {"generation.json": b'{"temperature": 0.0, "max_new_tokens": 5}', **BAICHUAN}
    register(home, "wilful", made_checkpoints.drawn(window=96), files=wilful)
    register(home, "rewarding", made_checkpoints.drawn(window=96), role="reward", files=BAICHUAN)
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BC2_HOME", str(home))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def chat(bc2: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """``bc2 chat`` in this process, with what is said on stdin."""

    def run(*args: object, said: bytes | str = "") -> Any:
        file = tmp_path / "stdin"
        file.write_bytes(said.encode() if isinstance(said, str) else said)
        with file.open(encoding="utf-8") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            return bc2("chat", *args)

    return run


def rows(run: Any) -> list[Any]:
    assert run.code == 0, run.err
    return [json.loads(line) for line in run.out.splitlines()]


def test_an_answer_for_each_line(chat: Chat) -> None:
    run = chat("says-7", "--temperature", 0, said="what is four?\n\n  \n/exit\n//x\\\nlast")
    assert (run.code, run.out) == (0, "#### 7\n" * 4)
    assert run.err == ""


def test_json_has_what_the_answers_are_and_what_was_read(chat: Chat, bc2: Chat) -> None:
    run = chat("chatml", *SHORT, "--json", said="hello\n\n/exit\n{x\n")
    first, second, third = rows(run)
    assert [one["prompt"] for one in (first, second, third)] == ["hello", "/exit", "{x"]
    assert [one["index"] for one in (first, second, third)] == [0, 1, 2]
    tokenizer = Tokenizer.from_bytes(qwen_like())
    assert first["text"] == tokenizer.generated_bytes(first["ids"]).decode("utf-8", "replace")
    assert (first["tokens"], first["finish_reason"], first["left_out"]) == (12, "length", 0)
    assert first["read_tokens"] == first["prompt_tokens"]
    assert second["read_tokens"] <= second["prompt_tokens"] - first["prompt_tokens"]
    assert run.err == ""
    # The first answer is the one that `bc2 generate --chat` gives.
    alone = bc2("generate", "chatml", "hello", "--chat", *SHORT, "--json").json["results"][0]
    assert alone["text"] == first["text"]


def test_a_broken_object_is_no_message(chat: Chat) -> None:
    run = chat("chatml", *SHORT, "--json", said='{"content": "a"\nhello\n')
    assert (run.code, run.out) == (3, "")
    assert "stdin:1" in run.err


def test_messages_in_json_may_have_several_lines(chat: Chat) -> None:
    both = chat("chatml", *SHORT, "--json", said='{"content": "a\\nb"}\n{"content": "\\ud800"}\n')
    first, second = rows(both)
    assert (first["prompt"], second["prompt"]) == ("a\nb", "\ud800")
    (plain,) = rows(chat("chatml", *SHORT, "--json", said="a\\nb\n"))
    assert plain["prompt"] == "a\\nb"
    assert plain["ids"] != first["ids"]


def test_a_system_message_and_stop_texts(chat: Chat) -> None:
    (plain,) = rows(chat("baichuan", *SHORT, "--json", said="hello"))
    (told,) = rows(chat("baichuan", *SHORT, "--json", "--system", "Answer.", said="hello"))
    assert told["prompt_tokens"] > plain["prompt_tokens"]
    assert told["ids"] != plain["ids"]
    ended = rows(chat("says-7", "--temperature", 0, "--stop", " 7", "--json", said="a\nb\n"))
    assert [(one["text"], one["finish_reason"]) for one in ended] == [("####", "stop")] * 2


def test_settings_are_the_options_the_models_the_layouts(chat: Chat) -> None:
    greedy = [rows(chat("wilful", "--json", "--seed", n, said="hello"))[0] for n in (1, 2)]
    assert greedy[0] == greedy[1]
    assert greedy[0]["tokens"] == 5
    (longer,) = rows(chat("wilful", "--json", "--max-new-tokens", 7, said="hello"))
    assert longer["tokens"] == 7
    # A model that says nothing is sampled as those that its layout is of, over half the window.
    official = ("--temperature", 0.3, "--top-k", 5, "--top-p", 0.85, "--repetition-penalty", 1.05)
    (own,) = rows(chat("baichuan", "--json", said="hello"))
    (same,) = rows(chat("baichuan", "--json", *official, "--max-new-tokens", 48, said="hello"))
    assert own == same
    assert own["tokens"] == 48


def test_what_falls_out_is_said(chat: Chat) -> None:
    run = chat("baichuan", *SHORT, said="what is four and one?\n" * 6)
    found = rows(chat("baichuan", *SHORT, "--json", said="what is four and one?\n" * 6))
    left_out = [one["left_out"] for one in found]
    assert left_out == sorted(left_out)
    assert left_out[-1] > 1
    # Where more is left out than before, that is said, and nothing else is.
    told = [line for line in run.err.splitlines() if "left out" in line]
    rises = [n for n in range(1, 6) if left_out[n] > left_out[n - 1]]
    room = "the window of 96 has room for 84 tokens beside the answer"
    assert told == [
        f"stdin:{n + 1}: {left_out[n]} of {n} rounds before this one are left out, the oldest: "
        f"{room}"
        for n in rises
    ]
    assert max(one["prompt_tokens"] for one in found) <= 84
    cut = chat("baichuan", *SHORT, said="what is four and one? " * 30)
    assert "stdin:1: the message lost its beginning, " in cut.err
    cut = chat("baichuan", *SHORT, "--system", "what is four? " * 30, said="hello")
    assert "stdin:1: the message, with the system's before it, lost its beginning, " in cut.err


@pytest.mark.parametrize(
    ("args", "said", "code", "what"),
    [
        (("plain",), "hello", 3, "checkpoint/plain has no chat layout"),
        (("rewarding",), "hello", 4, "reward"),
        (("nosuch",), "hello", 4, "nosuch"),
        (("chatml", "--max-new-tokens", 128), "a", 2, "leaves nothing of the window of 128"),
        (("chatml", "--stop", ""), "a", 2, "a stop text is empty"),
        (("chatml", "--stop-id", 99999), "a", 2, "stop id 99999 is outside the vocabulary"),
        (("chatml", "--top-p", 2), "a", 2, "--top-p"),
        (("chatml", "--cache-memory", "9 KB"), "a", 2, "give the cache more memory"),
        (("chatml", "--load", "none.json"), "a", 3, "no such file"),
        (("chatml", "--load", "bad.json"), "a", 3, "no saved conversation"),
        (("chatml", "--json"), '{"content": "a"}\nb', 3, "not JSON"),
        (("chatml", "--json"), '{"contents": "a"}', 3, "did you mean 'content'?"),
        (("chatml", "--json"), '{"content": " "}', 3, "not an object with a `content`"),
    ],
)
def test_wrong_input(chat: Chat, args: tuple[Any, ...], said: str, code: int, what: str) -> None:
    Path("bad.json").write_text("{}")
    run = chat(*args, said=said)
    assert (run.code, what in run.err) == (code, True), run.err
    assert run.out.count("\n") == ("b" in said.split())


def test_a_line_that_is_wrong_ends_it_after_the_answers_before_it(chat: Chat) -> None:
    broken = chat("says-7", "--temperature", 0, said=b"what is four?\n\xff\xfe\nand?\n")
    assert (broken.code, broken.out) == (3, "#### 7\n")
    assert "not UTF-8" in broken.err
    assert "where: stdin:2" in broken.err
    long = chat("chatml", *SHORT, "--json", said="hello\n" + "hello " * 200)
    assert (long.code, long.out.count("\n")) == (3, 1)
    assert "the window of 128 has room for 116 beside the answer" in long.err
    assert "where: stdin:2" in long.err


def test_a_reader_that_goes_away_ends_it() -> None:
    command = [sys.executable, "-P", "-m", "bc2", "chat", "says-7", "--temperature", "0"]
    with warmed.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        run.stdin.write(b"what is four?\n")
        run.stdin.flush()
        # An answer comes before the next line is there.
        assert run.stdout.readline() == b"#### 7\n"
        run.stdout.close()
        run.stdin.write(b"and?\n")
        run.stdin.flush()
        assert run.wait(timeout=60) == 0
        assert run.stderr.read() == b""


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_an_answer_that_cannot_be_written_ends_it(json_too: tuple[str, ...]) -> None:
    command = [sys.executable, "-P", "-m", "bc2", "chat", "says-7", "--temperature", "0"]
    with open("/dev/full", "wb") as full:
        run = warmed.run([*command, *json_too], input=b"a\n", stdout=full, stderr=subprocess.PIPE)
    assert run.returncode == 1
    assert run.stderr.startswith(b"error: the result could not be written: no space left")


def test_a_saved_conversation_goes_on_in_a_pipe(chat: Chat) -> None:
    """`/save` is tested at a terminal; here a file that somebody wrote."""
    file = {
        "bc2_chat": 1, "model": {"title": "checkpoint/x", "digest": "0" * 64}, "system": None,
        "messages": [
            {"role": "user", "content": "four?"}, {"role": "assistant", "content": "five"},
        ],
        "ids": [[], []], "sampling": {},
    }  # fmt: skip
    Path("c.json").write_text(json.dumps(file))
    run = chat("baichuan", *SHORT, "--load", "c.json", "--json", said="and?")
    (found,) = rows(run)
    (fresh,) = rows(chat("baichuan", *SHORT, "--json", said="and?"))
    assert found["prompt_tokens"] > fresh["prompt_tokens"]
    more = chat(
        "baichuan", *SHORT, "--load", "c.json", "--system", "the answer", "--json", said="and?"
    )
    assert rows(more)[0]["prompt_tokens"] > found["prompt_tokens"]
    told = "c.json: 1 round; it was held with another model, checkpoint/x, so its tokens were made"
    assert told in run.err
