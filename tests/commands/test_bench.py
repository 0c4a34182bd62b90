"""`bc2 bench` from the command line: results, what is kept of them, and wrong usage."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import warmed

from bc2.cli import main

TINY = [
    "--set", "model.vocab_size=256", "--set", "model.hidden_size=64",
    "--set", "model.intermediate_size=128", "--set", "model.num_layers=2",
    "--set", "model.num_heads=2", "--set", "pretrain.batch_tokens=1024",
    "--set", "pretrain.micro_batch=2", "--steps", "2", "--rounds", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry home with two results: one against the peer, one of ours alone."""
    path = tmp_path_factory.mktemp("bench")
    (path / ".bc2").mkdir()
    against = ("--against", "hf", "--peers", "bf16-eager", "--markdown", "page.md")
    ok(path, *TINY, *against, "--no-checkpoint", "--json", out="first.json")
    ok(path, *TINY, "--set", "model.num_layers=1", "--json", out="second.json")
    return path


def bench(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bc2", "bench", *args]
    return warmed.run(
        command, children=True, capture_output=True, text=True, cwd=folder, check=False
    )


def ok(folder: Path, *args: str, out: str | None = None) -> str:
    run = bench(folder, *args)
    assert run.returncode == 0, run.stderr
    if out is not None:
        (folder / out).write_text(run.stdout)
    return run.stdout


def result(folder: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / name).read_text())
    return read


def test_json_has_every_figure(folder: Path) -> None:
    shown = result(folder, "first.json")
    ours, peer = shown["contenders"]
    assert (ours["name"], peer["name"]) == ("bc2-eager", "hf-bf16-eager")
    for found in (ours, peer):
        assert found["failed"] is None
        speed = found["tokens_per_s"]
        assert speed["low"] <= speed["median"] <= speed["high"] * 1.001
        assert found["flops"] == pytest.approx(speed["median"] * shown["flops_per_token"])
        assert found["mfu_measured"] == pytest.approx(found["flops"] / shown["peak"]["measured"])
        assert found["memory"]["peak"] > found["memory"]["baseline"] > 0
    (ratio,) = shown["ratios"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert shown["best_peer"] == "hf-bf16-eager"
    assert shown["machine"]["packages"]["torch"]
    assert shown["recipe"]["model"]["hidden_size"] == 64
    assert result(folder, "second.json")["contenders"][0]["checkpoint"]["wait_s"] > 0


def test_no_path_or_host_is_kept(folder: Path) -> None:
    for path in (folder / ".bc2" / "bench").glob("*.json"):
        assert str(folder) not in path.read_text()


def test_markdown_is_written(folder: Path) -> None:
    page = (folder / "page.md").read_text()
    assert page.startswith(f"# bc2 bench: {result(folder, 'first.json')['id']}\n")
    assert "| bc2-eager | hf-bf16-eager |" in page


def test_results_are_kept_listed_and_compared(folder: Path) -> None:
    first, second = (result(folder, name)["id"] for name in ("first.json", "second.json"))
    kept = sorted(path.name for path in (folder / ".bc2" / "bench").iterdir())
    assert kept == [f"{first}.json", f"{second}.json"]
    listed = json.loads(ok(folder, "--list", "--json"))
    assert [each["id"] for each in listed["results"]] == [first, second]
    assert "hf-bf16-eager" in ok(folder, "--list")
    run = bench(folder, "--compare", first, second)
    assert run.returncode == 0, run.stderr
    assert "bc2-eager" in run.stdout
    assert "warning: they differ in recipe model" in run.stderr
    unlike = json.loads(ok(folder, "--compare", first, second, "--json"))["differences"]
    assert any("num_layers" in line for line in unlike)


def test_layouts_over_ranks_are_measured_beside_one_process(tmp_path: Path) -> None:
    layouts = ("--layout", "2:zero=1", "--layout", "2:tensor=2")
    shown = json.loads(ok(tmp_path, *TINY, *layouts, "--json"))
    alone, zero, tensor = shown["contenders"]
    assert [each["name"] for each in (alone, zero, tensor)] == [
        "bc2-eager", "bc2-2:zero=1", "bc2-2:tensor=2",
    ]  # fmt: skip
    assert [each["ranks"] for each in (alone, zero, tensor)] == [1, 2, 2]
    assert tensor["parallel"]["tensor"] == 2
    # The same samples from the same weights; compared after as many steps as warming up took.
    assert all(2 < each["loss"] < 8 for each in (alone, zero, tensor))
    assert all(each["checkpoint"]["bytes"] > 0 for each in (alone, zero, tensor))
    # A rank of two holds half of most things.
    assert tensor["memory"]["estimate"]["total"] < 0.75 * alone["memory"]["estimate"]["total"]
    assert [(r["ours"], r["peer"]) for r in shown["ratios"]] == [
        ("bc2-2:zero=1", "bc2-eager"), ("bc2-2:tensor=2", "bc2-eager"),
    ]  # fmt: skip


def test_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "bc2", "bench", *TINY, "--rounds", "1000"]
    environment = {**os.environ, "BC2_HOME": str(tmp_path / "home")}
    process = warmed.Popen(
        command, children=True, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    assert "1000 rounds of 2 steps" in process.stderr.readline()
    scratch = tmp_path / "home" / "bench"
    while not list(scratch.glob("run-*/shards/tokens.json")):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert list(scratch.iterdir()) == []


def test_an_unknown_result_is_exit_4(folder: Path) -> None:
    run = bench(folder, "--compare", "nothing", "at-all")
    assert run.returncode == 4
    assert "no kept result 'nothing'" in run.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps", "0"], "--steps 0 is too few"),
        (["--rounds", "0"], "--rounds 0 is too few"),
        (["--documents", "-1"], "--documents -1 is too few"),
        (["--against", "vllm"], "no peer is called 'vllm'"),
        (["--against", "hf", "--peers", "bf16-eagre"], "did you mean 'bf16-eager'?"),
        (["--peers", "bf16-eager"], "--peers without a peer"),
        (["--against", "hf", "--peer-environment", "x"], "--peer-environment 'x'"),
        (["--against", "hf", "--documents", "9"], "does not keep packed documents apart"),
        (["--ours", "jit"], "--ours does not know 'jit'"),
        (["--layout", "two"], "--layout 'two' is no number of ranks"),
        (["--layout", "2:tensr=2"], "cannot read 'tensr=2'"),
        (["--layout", "2:zero=7"], "zero: Input should be 0, 1, 2 or 3"),
        (["--layout", "5:tensor=5"], "parallel.tensor = 5 does not divide model.num_heads = 6"),
        (["--layout", "3"], "no whole number of micro-batches"),
        (["--checkpointing", "a"], "--checkpointing cannot read 'a'"),
        (["--markdown", "none/page.md"], "no such directory"),
        (["--set", "model.context_length=256"], "longer than model.context_length"),
        (["--set", "model.num_heads=7"], "not divisible"),
        (["--set", "model.head=scalar"], "a benchmark of pretraining needs a language head"),
        (["no-model.toml"], "has no [model] section"),
        (["missing.toml"], "no such recipe"),
    ],
)
def test_wrong_usage_is_exit_2_with_one_message(
    args: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    (tmp_path / "no-model.toml").write_text(
        '[pretrain]\nlength = "9 steps"\nbatch_tokens = 8\nmicro_batch = 1\nsequence_length = 8\n'
    )
    with pytest.raises(SystemExit) as caught:
        main(["bench", *args])
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert message in err
    assert err.count("error:") == 1
    assert out == ""
    assert not (tmp_path / "home").exists()


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else plain(name)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--against", "hf"])
    assert caught.value.code == 2
    assert "pip install transformers" in capsys.readouterr().err
