"""`bc2 bench generate` from the command line: results, what is kept of them, wrong usage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warmed

from bc2.cli import main
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.registry import Draft, Registry

TINY = [
    "--set", "model.vocab_size=256", "--set", "model.hidden_size=64",
    "--set", "model.intermediate_size=128", "--set", "model.num_layers=1",
    "--set", "model.num_heads=2", "--set", "model.context_length=1024",
    "--requests", "4", "--subjects", "1", "--questions", "2", "--n", "3", "--rounds", "2",
    "--sizes", "2", "--cache-mb", "64",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry home with two results: one against a peer, one of ours alone."""
    path = tmp_path_factory.mktemp("bench")
    (path / ".bc2").mkdir()
    only = ("--only", "decode,prefix,settle,n", "--against", "hf-static")
    ok(path, *TINY, *only, "--markdown", "page.md", "--json", out="first.json")
    ok(path, *TINY, "--only", "decode", "--against", "none", "--json", out="second.json")
    return path


def bench(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bc2", "bench", "generate", *args]
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
    ours, peer = shown["decode"]
    assert (ours["name"], peer["name"]) == ("bc2-fp32", "hf-static-fp32")
    for found in (ours, peer):
        assert found["failed"] is None
        speed = found["tokens_per_s"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
        assert all(
            0 < each["first_median_s"] <= each["first_p95_s"] <= each["seconds"]
            for each in found["rounds"]
        )
        assert found["memory"]["peak"] > found["memory"]["baseline"] > 0
    assert (ours["size"], peer["size"], peer["same_answers"]) == (0, 2, 1.0)
    # A warm-up of 4 x 8 tokens, and two rounds.
    assert ours["counters"]["new_tokens"] == 32 + 2 * shown["work"]["answer_tokens"]
    (ratio,) = shown["ratios"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    (prefix,) = shown["prefix"]
    assert prefix["requests"] == 8
    assert prefix["shared_tokens"] < prefix["apart_tokens"] / 4
    assert prefix["difference"] < 1e-4
    (settle,) = shown["settle"]
    assert 0 <= settle["share"]["median"] < 1
    (family,) = shown["n"]
    assert (family["n"], family["one_prefill"]) == (3, True)
    assert shown["sampling"] == []
    assert shown["machine"]["packages"]["torch"]
    assert shown["recipe"]["model"]["hidden_size"] == 64


def test_results_are_kept_listed_and_compared(folder: Path) -> None:
    first, second = (result(folder, name)["id"] for name in ("first.json", "second.json"))
    kept = folder / ".bc2" / "bench" / "generation"
    assert sorted(path.name for path in kept.iterdir()) == [f"{first}.json", f"{second}.json"]
    assert all(str(folder) not in path.read_text() for path in kept.iterdir())
    listed = json.loads(ok(folder, "--list", "--json"))
    assert [each["id"] for each in listed["results"]] == [first, second]
    assert "hf-static-fp32" in ok(folder, "--list")
    run = bench(folder, "--compare", first, second)
    assert run.returncode == 0, run.stderr
    assert "bc2-fp32, tokens/s" in run.stdout
    assert "warning: they differ in settings only" in run.stderr
    # They are no results of `bc2 bench`, which has a list of its own.
    main_list = warmed.run(
        [sys.executable, "-P", "-m", "bc2", "bench", "--list", "--json"],
        children=True, capture_output=True, text=True, cwd=folder, check=False,
    )  # fmt: skip
    assert (main_list.returncode, json.loads(main_list.stdout)) == (0, {"results": []})


def test_markdown_is_written(folder: Path) -> None:
    page = (folder / "page.md").read_text()
    assert page.startswith(f"# bc2 bench generate: {result(folder, 'first.json')['id']}\n")
    assert "| bc2-fp32 | hf-static-fp32 |" in page


def test_a_registered_model_is_measured(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
        context_length=1024,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    registry = Registry.open(tmp_path / ".bc2")
    with registry.stage(Draft(kind="checkpoint", name="mine", key="0" * 64)) as staged:
        save_model(staged.path, config, model.state_dict())
        digest = staged.publish().digest
    asked = ("--only", "n", "--n", "2", "--rounds", "1", "--requests", "1", "--cache-mb", "64")
    shown = json.loads(ok(tmp_path, "--checkpoint", "mine", *asked, "--json"))
    assert shown["id"].startswith("mine-")
    assert shown["recipe"]["checkpoint"] == digest
    assert shown["recipe"]["model"]["hidden_size"] == 32
    assert shown["n"][0]["one_prefill"]


def ends(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(args)
    said = capsys.readouterr()
    return int(caught.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--only", "encode"], "--only does not know 'encode'"),
        (["--against", "vllm"], "--against does not know 'vllm'"),
        (["--markdown", "no/such/page.md"], "no such directory"),
        (["--checkpoint", "x", "--set", "model.num_layers=1"], "its own shape"),
        (["--requests", "0"], "--requests"),
        (["--n", "1"], "--n"),
        (["--set", "model.head=scalar"], "generating needs a language head"),
        (["--prompts", "none.jsonl"], "cannot be read"),
    ],
)
def test_wrong_usage_is_told(
    args: list[str], what: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = ends(["bench", "generate", *args], capsys)
    assert (code in (2, 3), out) == (True, "")
    assert what in err


def test_each_of_the_two_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ends(["bench", "generate", "--help"], capsys)
    assert code == 0
    assert out.startswith("Usage: bc2 bench generate [OPTIONS] [RECIPE]")
    assert "--checkpoint REF" in out
    code, out, _ = ends(["bench", "--help"], capsys)
    assert code == 0
    assert out.startswith("Usage: bc2 bench [OPTIONS] [RECIPE]")
    assert "bc2 bench generate" in out
    assert "--layout" in out
    code, _, err = ends(["bench", "generates"], capsys)
    assert code == 2
    assert "generates" in err
