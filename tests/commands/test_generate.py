"""`bc2 generate` on a small trained model."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warmed
import zstandard

from bc2 import recipe
from bc2.cli import main
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
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


def generate(
    folder: Path, *args: str, text_in: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bc2", "generate", *args]
    return warmed.run(
        command, capture_output=True, text=True, cwd=folder, check=False, input=text_in
    )


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
        (("small", "x", "--n", "2000"), 2, "--n: input should be less than or equal to 1024"),
        (("small", "x", "--logprobs", "101"), 2, "--logprobs"),
        (("small", "x", "--min-p", "2"), 2, "--min-p"),
        (("small", "x", "--repetition-penalty", "0"), 2, "--repetition-penalty"),
        (("small", "x", "--stop", ""), 2, "a stop text is empty"),
        (("small", "x", "--stop-id", "5000"), 2, "stop id 5000 is outside the vocabulary of 1,024"),
        (("small", "x", "--cache-memory", "2 gibi"), 2, "--cache-memory cannot read '2 gibi'"),
        (("small", "x", "--cache-memory", "1 KB"), 2, "give it at least"),
        (("small", "x", "--cache-memory", "20 KB"), 2, "give the cache more memory"),
        (("small", "x", "--jsonl", "--json"), 2, "--jsonl goes neither with"),
        (("small", "x", "--as-completed"), 2, "add --jsonl or --out"),
        (("small", "x", "--out", "none/r.jsonl"), 2, "no such directory"),
        (("--file", "."), 3, "a directory, not a file of prompts"),
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
        ("latin.txt", "caf\u00e9".encode("latin-1"), "not UTF-8: byte 3"),
        (
            "gbk.jsonl",
            '{"prompt": "编码是字符与字节之间的对应，写法不一。"}'.encode("gbk"),
            "the file is likely in gb18030",
        ),
        ("no.jsonl", b'no JSON\n{"prompt": "one"}\n', "no.jsonl:1"),
        ("key.jsonl", b'{"prompt": "one", "temprature": 1}\n', "did you mean 'temperature'"),
        ("rows.json", b'[{"prompt": "one"}]', "cannot read prompts from .json"),
        ("cut.jsonl.gz", b"\x1f\x8b\x08", "damaged or cut short"),
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


def rows_of(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_continuations_and_log_probabilities(trained: Path) -> None:
    options = ("--n", "3", "--temperature", "1", "--max-new-tokens", "6", "--top-k", "50")
    run = generate(trained, "small", "import os", *options, "--logprobs", "2", "--json")
    (row,) = json.loads(run.stdout)["results"]
    assert {key: row[key] for key in row["continuations"][0]} == row["continuations"][0]
    assert len({one["text"] for one in row["continuations"]}) > 1
    for one in row["continuations"]:
        assert len(one["log_probs"]) == one["tokens"]
        for token in one["log_probs"]:
            assert token["raw"] < token["drawn"] <= 0  # of 50 tokens, not of all
            assert [other["raw"] for other in token["top"]] == sorted(
                (other["raw"] for other in token["top"]), reverse=True
            )
            assert len(token["top"]) == 2


def test_log_probabilities_for_people(trained: Path) -> None:
    greedy = ("--temperature", "0", "--max-new-tokens", "3", "--ignore-eos")
    plain = generate(trained, "small", "import os", *greedy)
    run = generate(trained, "small", "import os", *greedy, "--logprobs", "1", "--n", "2")
    assert plain.returncode == run.returncode == 0, run.stderr
    text = plain.stdout.removesuffix("\n")
    first, second = run.stdout.split("[prompt 0, 2 of 2: 3 tokens, length]\n")
    assert first == f"[prompt 0, 1 of 2: 3 tokens, length]\n{second}"
    assert second.startswith(text)
    header, *rows = second.removeprefix(text).strip().splitlines()
    assert header.split() == ["token", "id", "log", "p", "drawn", "likeliest"]
    assert len(rows) == 3
    # The likeliest token was taken: with probability 1.
    assert all(row.split()[0] == row.split()[4] and "0.0000" in row for row in rows)


def test_equal_prompts_get_draws_of_their_own_that_companions_do_not_change(
    trained: Path, tmp_path: Path
) -> None:
    options = ("--temperature", "1", "--max-new-tokens", "12", "--seed", "3", "--jsonl")
    (tmp_path / "same.txt").write_text("The\n" * 3)
    (tmp_path / "other.txt").write_text("x\nThe\ny = 1\n\nz\n")
    same = rows_of(generate(trained, "--file", str(tmp_path / "same.txt"), *options))
    other = rows_of(generate(trained, "--file", str(tmp_path / "other.txt"), *options))
    (alone,) = rows_of(generate(trained, "The", *options))
    assert len({row["text"] for row in same}) == 3
    assert same[0] == alone
    assert same[1] == other[1]


def test_lines_have_settings_of_their_own_and_come_as_they_are_completed(trained: Path) -> None:
    lines = [
        {"prompt": "import", "max_new_tokens": 20, "stop_ids": []},
        {"prompt": "import", "max_new_tokens": 2, "stop_ids": [], "n": 2, "seed": 5},
        {"prompt": "import", "stop_ids": [], "stop": "e", "temperature": 0.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    options = ("--file", "-", "--jsonl", "--max-new-tokens", "30")
    rows = rows_of(generate(trained, *options, text_in=text))
    assert [row["tokens"] for row in rows[:2]] == [20, 2]
    assert [len(row.get("continuations", [])) for row in rows] == [0, 2, 0]
    assert "e" not in rows[2]["text"]
    mixed = rows_of(generate(trained, *options, "--as-completed", text_in=text))
    assert [row["index"] for row in mixed] != [0, 1, 2]
    assert sorted(mixed, key=lambda row: row["index"]) == rows


def test_compressed_prompts(trained: Path, tmp_path: Path) -> None:
    data = b'{"prompt": "one"}\r\n{"prompt": "two"}'
    short = ("--max-new-tokens", "3", "--temperature", "0", "--jsonl")
    found = []
    for name, packed in (
        ("p.jsonl", data),
        ("p.jsonl.gz", gzip.compress(data)),
        ("p.jsonl.zst", zstandard.compress(data)),
    ):
        (tmp_path / name).write_bytes(packed)
        found.append(rows_of(generate(trained, "--file", str(tmp_path / name), *short)))
    assert found[0] == found[1] == found[2]
    assert [row["prompt"] for row in found[0]] == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": ""}', "the prompt is empty"),
        (json.dumps({"prompt": "x " * 100}), "tokens and the model reads 64"),
        ('{"prompt": "x", "max_new_token": 3}', "did you mean 'max_new_tokens'"),
        ('{"prompt": "x", "top_p": 0}', "top_p: input should be greater than 0, not 0"),
        ('{"prompt": "x", "stop_ids": [4000]}', "stop id 4000 is outside the vocabulary"),
        ("no JSON", "not JSON"),
    ],
)
def test_a_wrong_line_comes_after_the_answers_to_those_before_it(
    trained: Path, tmp_path: Path, line: str, said: str
) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "r.jsonl"
    file.write_text(f'{{"prompt": "one"}}\n\n{line}\n{{"prompt": "three"}}\n')
    short = ("--max-new-tokens", "3", "--out", str(out))
    run = generate(trained, "small", "--file", str(file), *short)
    assert run.returncode == 3, run.stderr
    assert said in run.stderr
    assert f"{file}:3" in run.stderr
    assert f"answers written to {out}.partial: 1" in run.stderr
    assert not out.exists()
    partial = Path(f"{out}.partial").read_text()
    assert [json.loads(row)["prompt"] for row in partial.splitlines()] == ["one"]


def test_results_in_a_file(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    short = ("small", "one", "two", "--max-new-tokens", "3", "--temperature", "0")
    to_file = generate(trained, *short, "--out", str(out), "--json")
    assert json.loads(to_file.stdout)["answers"] == 2, to_file.stderr
    assert out.read_text() == generate(trained, *short, "--jsonl").stdout
    assert list(tmp_path.iterdir()) == [out]


def test_why_it_ended(trained: Path) -> None:
    greedy = ("small", "import os", "--temperature", "0", "--max-new-tokens", "6", "--jsonl")
    (free,) = rows_of(generate(trained, *greedy, "--ignore-eos", "--logprobs", "0"))
    ids = [token["id"] for token in free["log_probs"]]
    assert free["finish_reason"] == "length"
    assert all(token["top"] == [] for token in free["log_probs"])
    (ended,) = rows_of(generate(trained, *greedy, "--stop-id", str(ids[-1]), "--logprobs", "0"))
    assert ended["finish_reason"] == "stop_id"
    assert ended["tokens"] == ids.index(ids[-1])
    assert ended["end_log_prob"]["id"] == ids[-1]


def test_a_terminal_shows_the_same_as_a_pipe(trained: Path) -> None:
    args = ("small", "import os", "--max-new-tokens", "8", "--stop", "e", "--logprobs", "1")
    piped = generate(trained, *args)
    terminal, end = os.openpty()
    command = [sys.executable, "-P", "-m", "bc2", "generate", *args]
    with warmed.Popen(command, stdout=end, stderr=subprocess.PIPE, cwd=trained) as run:
        assert run.wait(timeout=120) == 0, run.stderr.read()
    os.set_blocking(terminal, False)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(terminal, 1 << 16).decode()).splitlines()
    os.close(terminal)
    os.close(end)
    # A table on a terminal is bold and padded.
    assert [line.rstrip() for line in shown] == piped.stdout.splitlines()
    assert len(shown) > 2


def test_ctrl_c_says_how_many_were_written(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The\n" * 200_000)
    command = [sys.executable, "-P", "-m", "bc2", "generate", "small", "--jsonl"]
    command += ["--file", str(tmp_path / "p.txt"), "--max-new-tokens", "1"]
    pipe = subprocess.PIPE
    with warmed.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=trained) as run:
        rows = [json.loads(run.stdout.readline())]
        run.send_signal(signal.SIGINT)
        rows += map(json.loads, run.stdout)
        err = run.stderr.read()
        assert run.wait(timeout=120) == 130, err
    assert [row["index"] for row in rows] == list(range(len(rows)))
    told = re.search(r"interrupted; answers written: (at least )?([\d,]+)\n", err)
    assert told is not None, err
    written = int(told[2].replace(",", ""))
    # The signal may have come between the writing of a line and its counting.
    assert written == len(rows) or (told[1] and written == len(rows) - 1)


def test_a_reader_that_leaves_is_no_error(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("The\n" * 200_000)
    command = [sys.executable, "-P", "-m", "bc2", "generate", "small", "--quiet"]
    command += ["--file", str(tmp_path / "p.txt"), "--max-new-tokens", "1"]
    pipe = subprocess.PIPE
    with warmed.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=trained) as run:
        run.stdout.readline()
        run.stdout.close()
        assert run.wait(timeout=120) == 0
        assert run.stderr.read() == ""


def test_the_python_of_the_page_runs(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "generate.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(trained)
    exec(code.replace('"tiny"', '"small"'), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert sum("nats a token" in line for line in lines) == 2
    assert "0 10 tokens, cancelled" in lines


def test_a_model_is_one_that_continues_text(trained: Path) -> None:
    registry = Registry.open(trained / ".bc2")
    with registry.stage(Draft("checkpoint", "judge", "0" * 64, role="reward")) as staged:
        (staged.path / "model.safetensors").write_bytes(b"x")
        staged.publish()
    newest = generate(trained, "import os", "--max-new-tokens", "1")
    assert "taking the newest model, checkpoint/small@10" in newest.stderr
    run = generate(trained, "judge", "import os")
    assert run.returncode == 4
    assert "of role reward, and one of role base, chat, adapter or merged is needed" in run.stderr


def test_results_do_not_replace_the_prompts(trained: Path) -> None:
    (trained / "own.jsonl").write_text('{"prompt": "a"}\n')
    run = generate(trained, "--file", "own.jsonl", "--out", "./own.jsonl")
    assert run.returncode == 2
    assert "the results would replace the prompts" in run.stderr
    assert (trained / "own.jsonl").read_text() == '{"prompt": "a"}\n'


def test_a_model_with_a_scalar_head_is_shown_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path))
    shape = ModelConfig(
        vocab_size=8, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2, head="scalar"
    )
    with Registry.open(tmp_path).stage(Draft("checkpoint", "valued", "0" * 64)) as staged:
        save_model(staged.path, shape, Transformer(shape).state_dict())
        staged.publish()
    for words, code in ((["registry", "show", "valued"], 0), (["generate", "valued", "hello"], 4)):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert int(ended.value.code or 0) == code
    assert "has a scalar head, and only a language head" in capsys.readouterr().err
