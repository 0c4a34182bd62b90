"""From a recipe to artifacts, and what wrong inputs end in, through the command line."""

from __future__ import annotations

import argparse
import gzip
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warmed

from bc2 import recipe
from bc2.pipeline.session import Session
from bc2.registry import Registry

BC2 = [sys.executable, "-P", "-m", "bc2"]

TEXT = """\
[corpus]
heldout_fraction = 0.2
[[corpus.sources]]
name = "text"
path = "text"

[tokenizer]
vocab_size = 600
"""


def bc2(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BC2_HOME": str(folder / "home"), **env}
    return warmed.run(
        [*BC2, *args], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A working directory with a recipe and forty short documents."""
    (tmp_path / "r.toml").write_text(TEXT)
    (tmp_path / "text").mkdir()
    source = inspect.getsource(argparse)
    rows = [{"text": source[at : at + 2000]} for at in range(0, 80_000, 2000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "text" / "a.jsonl").write_text(lines)
    return tmp_path


def left_behind(folder: Path) -> list[str]:
    """What a failed command left in the home, but the index and the digest cache."""
    home = folder / "home"
    found = [*(home / "artifacts").rglob("*"), *(home / "staging").glob("*")]
    return [str(path.relative_to(home)) for path in found if path.name != "trash"]


def test_every_stage_is_made_once_and_traced(small: Path) -> None:
    session = Session(Registry.open())
    loaded = recipe.load("small.toml", ["pretrain.length=6 steps"])
    model = session.obtain("checkpoint", loaded, command=["bc2"])
    assert [a.kind for a in session.built] == ["checkpoint"]
    registry = session.registry
    kinds = {a.kind: a for a in registry.list()}
    assert {p.kind for p in registry.parents(model)} == {"tokens", "tokenizer"}
    assert [p.kind for p in registry.parents(kinds["tokenizer"])] == ["corpus"]
    again = Session(Registry.open())
    assert again.obtain("checkpoint", loaded, command=["bc2"]).digest == model.digest
    assert again.built == []


def test_a_changed_input_file_makes_a_new_corpus(text: Path) -> None:
    first = bc2(text, "data", "prep", "r.toml", "--quiet").stdout
    assert bc2(text, "data", "prep", "r.toml", "--quiet").stdout == first
    with (text / "text" / "a.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "one more document"}) + "\n")
    assert bc2(text, "data", "prep", "r.toml", "--quiet").stdout != first


def test_the_place_of_the_files_is_not_part_of_the_corpus(text: Path) -> None:
    first = bc2(text, "data", "prep", "r.toml", "--quiet").stdout
    (text / "text").rename(text / "moved")
    again = bc2(text, "data", "prep", "r.toml", "--quiet", "--set", "corpus.sources.0.path=moved")
    assert again.stdout == first


def test_upstream_by_ref_and_by_recipe(text: Path) -> None:
    corpus = bc2(text, "data", "prep", "r.toml", "--quiet").stdout.strip()
    (text / "by_ref.toml").write_text(f'[tokenizer]\nvocab_size = 600\ncorpus = "{corpus}"\n')
    (text / "by_recipe.toml").write_text('[tokenizer]\nvocab_size = 600\ncorpus = "r.toml"\n')
    (text / "newest.toml").write_text("[tokenizer]\nvocab_size = 600\n")
    made = [
        bc2(text, "train-tokenizer", name, "--quiet")
        for name in ("by_ref.toml", "by_recipe.toml", "newest.toml")
    ]
    assert [run.returncode for run in made] == [0, 0, 0], made
    assert len({run.stdout for run in made}) == 1
    assert "taking the newest, corpus/r" in made[2].stderr


def test_report_compares_tokenizers(text: Path) -> None:
    tokenizer = bc2(text, "train-tokenizer", "r.toml", "--json")
    path = Path(json.loads(tokenizer.stdout)["path"]) / "tokenizer.model"
    run = bc2(text, "train-tokenizer", "r.toml", "--report", "--against", str(path), "--json")
    assert run.returncode == 0, run.stderr
    total = [row for row in json.loads(run.stdout)["rows"] if row["group"] == "total"]
    assert len(total) == 2
    assert total[0]["tokens_per_byte"] == total[1]["tokens_per_byte"] > 0


def test_a_report_without_held_out_text_names_the_setting(text: Path) -> None:
    (text / "none.toml").write_text(TEXT.replace("0.2", "0"))
    run = bc2(text, "train-tokenizer", "none.toml", "--report")
    assert run.returncode == 2, run.stderr
    assert "set corpus.heldout_fraction above 0" in run.stderr
    assert "none.toml:2" in run.stderr
    assert left_behind(text) == []  # it is said before any work


@pytest.mark.slow
def test_a_report_on_a_corpus_without_held_out_text_names_the_setting(text: Path) -> None:
    (text / "none.toml").write_text(TEXT.replace("0.2", "0"))
    corpus = bc2(text, "data", "prep", "none.toml", "--quiet").stdout.strip()
    (text / "by_ref.toml").write_text(f'[tokenizer]\nvocab_size = 600\ncorpus = "{corpus}"\n')
    run = bc2(text, "train-tokenizer", "by_ref.toml", "--against", "x.model")
    assert run.returncode == 3, run.stderr
    assert "set corpus.heldout_fraction above 0" in run.stderr


def test_a_pipeline_in_the_shell(small: Path) -> None:
    script = (
        "set -e; REF=$(bc2 pretrain small.toml --quiet --set 'pretrain.length=6 steps'); "
        'bc2 registry show "$REF" --json'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    run = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["kind"] == "checkpoint"


# Wrong inputs: one clear message each, the right code, nothing left behind.


def test_missing_input(text: Path) -> None:
    run = bc2(text, "data", "prep", "r.toml", "--set", "corpus.sources.0.path=nowhere")
    assert run.returncode == 3
    assert "nowhere" in run.stderr
    assert not left_behind(text)


def test_empty_corpus(text: Path) -> None:
    (text / "text" / "a.jsonl").write_text("")
    run = bc2(text, "data", "prep", "r.toml")
    assert run.returncode == 3, run.stderr
    assert not left_behind(text)


def test_malformed_row_names_file_and_row(text: Path) -> None:
    with (text / "text" / "a.jsonl").open("a") as stream:
        stream.write("{broken\n")
    run = bc2(text, "data", "prep", "r.toml")
    assert run.returncode == 3
    assert "a.jsonl:41" in run.stderr
    skipped = bc2(
        text,
        "data",
        "prep",
        "r.toml",
        "--set",
        "corpus.malformed=skip",
        "--set",
        "corpus.max_malformed=0.1",
        "--json",
    )
    assert skipped.returncode == 0
    assert '"documents": 1' in json.dumps(
        json.loads(skipped.stdout)["facts"]["sources"][0]["drops"]
    )


def test_corrupt_gzip(text: Path) -> None:
    data = gzip.compress((text / "text" / "a.jsonl").read_bytes())
    (text / "text" / "a.jsonl").unlink()
    (text / "text" / "b.jsonl.gz").write_bytes(data[: len(data) // 2])
    run = bc2(text, "data", "prep", "r.toml")
    assert run.returncode == 3
    assert "b.jsonl.gz" in run.stderr
    assert not left_behind(text)


def test_vocabulary_larger_than_the_corpus_allows(text: Path) -> None:
    run = bc2(text, "train-tokenizer", "r.toml", "--set", "tokenizer.vocab_size=20000")
    assert run.returncode == 2
    assert "20000" in run.stderr.replace(",", "")
    kinds = json.loads(bc2(text, "registry", "list", "--json").stdout)["artifacts"]
    assert [a["kind"] for a in kinds] == ["corpus"]


def test_model_smaller_than_its_tokenizer(small: Path) -> None:
    run = bc2(small, "pretrain", "small.toml", "--set", "model.vocab_size=600")
    assert run.returncode == 2
    assert "set model.vocab_size = 1024" in run.stderr


def test_warmup_longer_than_the_run(small: Path) -> None:
    run = bc2(small, "pretrain", "small.toml", "--set", "pretrain.length=3 steps")
    assert run.returncode == 2
    assert "warm-up" in run.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("name=../../out", "'../../out' cannot be the name of an artifact"),
        ("corpus.heldout_fraction=2", "corpus.heldout_fraction"),
    ],
)
def test_the_name_and_sections_of_earlier_stages_are_checked_before_a_run(
    small: Path, override: str, said: str
) -> None:
    overrides = ("--set", "pretrain.tokens=tokens/small", "--set", override)
    run = bc2(small, "pretrain", "small.toml", *overrides)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {said}")
    assert f"--set {override}" in run.stderr
    assert not (small / "home" / "runs").exists()


def test_unknown_source_in_the_mixture(small: Path) -> None:
    run = bc2(
        small, "pretrain", "small.toml", "--set", "pretrain.weights={ docs = 1.0, cod = 2.0 }"
    )
    assert run.returncode == 2
    assert "cod" in run.stderr


def test_flipped_byte_in_the_token_shards_is_found_before_training(small: Path) -> None:
    tokens = Registry.open().newest("tokens")
    shard = tokens.path / next(name for name in tokens.files() if name.endswith(".bin"))
    os.chmod(shard, 0o644)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run = bc2(small, "pretrain", "small.toml")
    assert run.returncode == 5
    assert shard.name in run.stderr


def test_ambiguous_and_unknown_refs(small: Path) -> None:
    ambiguous = bc2(small, "registry", "show", "small")
    assert ambiguous.returncode == 4
    assert "corpus/small" in ambiguous.stderr
    unknown = bc2(small, "registry", "show", "smal")
    assert unknown.returncode == 4
    assert "small" in unknown.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_directory_without_rights(text: Path) -> None:
    home = text / "home"
    home.mkdir(mode=0o555)
    # root that may not override rights: everything else of it stays readable
    dropped = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
    run = subprocess.run(
        [*dropped, *BC2, "data", "prep", "r.toml"], capture_output=True, text=True, cwd=text,
        env={**os.environ, "BC2_HOME": str(home)}, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    assert "permission denied" in run.stderr.lower()
    assert "Traceback" not in run.stderr
    assert list(home.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_ends_in_6_and_leaves_nothing(text: Path) -> None:
    home = text / "home"
    home.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        rows = [{"text": os.urandom(4000).hex()} for _ in range(400)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (text / "text" / "a.jsonl").write_text(lines)
        run = bc2(text, "data", "prep", "r.toml")
        assert run.returncode == 6, run.stderr
        assert "disk full" in run.stderr
        assert not left_behind(text)
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


BLOCKED = """\
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"a local command opened a connection: {args}")
socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
from bc2.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "args",
    [
        ("pretrain", "small.toml", "--set", "pretrain.length=5 steps"),
        ("registry", "verify", "corpus/small"),
        ("doctor",),
    ],
)
def test_local_commands_open_no_connection(small: Path, args: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", BLOCKED, *args], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
