"""Fixtures that several rooms share: a small home with real text, tokenizer and shards."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import bc2  # noqa: F401 - its environment settings come before any import of torch

# Real ranks on a CPU; and a test must not depend on what else the machine does.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SMALL = """\
name = "small"
description = "A model of a few thousand parameters for tests"

[corpus]
heldout_fraction = 0.05

[[corpus.sources]]
name = "docs"
environment = "python-docs"
max_bytes = 400_000

[[corpus.sources]]
name = "code"
environment = "python-source"
max_bytes = 400_000

[tokenizer]
vocab_size = 1024

[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
context_length = 64

[pretrain]
length = "24 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
checkpoint_every = "4 steps"
eval_every = "8 steps"
eval_tokens = 2048

[pretrain.optimizer]
learning_rate = 3e-3

[pretrain.schedule]
warmup = "4 steps"
"""


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry home with the corpus, tokenizer and token shards of `SMALL`."""
    from bc2 import recipe, stages
    from bc2.registry import Registry

    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "small.toml"
    path.write_text(SMALL)
    stages.tokens(stages.Session(Registry.open(folder / "home")), recipe.load(path))
    return folder


@pytest.fixture
def small(prepared_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of `prepared_home` as the working directory: small.toml and $BC2_HOME."""
    shutil.copytree(prepared_home / "home", tmp_path / "home")
    shutil.copyfile(prepared_home / "small.toml", tmp_path / "small.toml")
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
