"""`bc2 generate` on a small trained model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warmed

from bc2 import recipe
from bc2.cli import main
from bc2.pipeline.session import Session
from bc2.registry import Draft, Registry


@pytest.fixture(scope="module")
def trained(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared_home / "home", folder / ".bc2")
    session = Session(Registry.open(folder / ".bc2"))
    loaded = recipe.load(prepared_home / "small.toml", ["pretrain.length=10 steps"])
    session.obtain("checkpoint", loaded, command=["bc2"])
    return folder


def generate(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bc2", "generate", *args]
    return warmed.run(command, capture_output=True, text=True, cwd=folder, check=False)


def texts(run: subprocess.CompletedProcess[str]) -> list[str]:
    assert run.returncode == 0, run.stderr
    return [result["text"] for result in json.loads(run.stdout)["results"]]


def test_one_word_is_a_prompt_for_the_newest_model(trained: Path) -> None:
    run = generate(trained, "import os", "--max-new-tokens", "8", "--json")
    assert len(texts(run)) == 1
    assert "taking the newest model, checkpoint/small@10" in run.stderr


def test_greedy_does_not_depend_on_the_batch(trained: Path) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "20", "--json")
    together = texts(generate(trained, "small", "def f(", "The", "import os", *greedy))
    apart = [texts(generate(trained, "small", p, *greedy))[0] for p in ("def f(", "The")]
    assert together[:2] == apart


def test_a_seed_repeats_and_another_differs(trained: Path) -> None:
    options = ("--max-new-tokens", "20", "--temperature", "1", "--json")
    runs = [texts(generate(trained, "The", *options, "--seed", seed)) for seed in "112"]
    assert runs[0] == runs[1] != runs[2]


def test_prompts_from_files(trained: Path) -> None:
    (trained / "p.txt").write_text("one\n\ntwo\n")
    (trained / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    short = ("--max-new-tokens", "4", "--temperature", "0")
    lines = generate(trained, "--file", "p.txt", *short, "--quiet")
    rows = generate(trained, "--file", "p.jsonl", *short, "--quiet")
    assert lines.returncode == rows.returncode == 0, rows.stderr
    assert lines.stdout == rows.stdout


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("small", ""), 3, "empty"),
        (("nosuch", "x"), 4, "nosuch"),
        (("small", "x", "--top-p", "0"), 2, "--top-p"),
        (("small", "x", "--device", "tpu"), 2, "tpu"),
        (("small", "x", "--precision", "fp8"), 2, "fp8"),
        (("small", "x " * 100), 3, "tokens and the model reads 64"),
        (("--file", "nosuch.txt"), 3, "nosuch.txt"),
        (("--file", "p.txt", "small", "x"), 2, "from --file or from the command line"),
        (("--seed", "1"), 2, "nothing to continue"),
    ],
)
def test_wrong_input(trained: Path, args: tuple[str, ...], code: int, said: str) -> None:
    run = generate(trained, *args)
    assert run.returncode == code, run.stderr
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("blank.txt", b"\n  \n", "no prompt in the file"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "not UTF-8 at byte 3"),
        ("no.jsonl", b'{"prompt": "one"}\nno JSON\n', "no.jsonl:2"),
        ("other.jsonl", b'\n{"text": "one"}\n', "other.jsonl:2"),
        ("list.jsonl", b'["prompt"]\n', "list.jsonl:1"),
        ("number.jsonl", b'{"prompt": 1}\n', "not an object with a `prompt` string"),
    ],
)
def test_wrong_files_of_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--file", str(tmp_path / name)])
    assert caught.value.code == 3
    out, err = capsys.readouterr()
    assert said in err
    assert str(tmp_path / name) in err
    assert out == ""


def test_a_model_is_one_that_continues_text(trained: Path) -> None:
    registry = Registry.open(trained / ".bc2")
    with registry.stage(Draft("checkpoint", "lora", "0" * 64, role="adapter")) as staged:
        (staged.path / "adapter.safetensors").write_bytes(b"x")
        staged.publish()
    newest = generate(trained, "import os", "--max-new-tokens", "1")
    assert "taking the newest model, checkpoint/small@10" in newest.stderr
    run = generate(trained, "lora", "import os")
    assert run.returncode == 4
    assert "of role adapter, and one of role base, chat or merged is needed" in run.stderr
