"""A model of 7B's size leaves within its largest tensor and 1 GB of memory, by a hard limit."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from convert_speed import random_checkpoint

from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.slow

GB = 10**9


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=125_696, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    if shutil.disk_usage(folder).free < 36 * GB:
        pytest.skip("needs 36 GB of disk")
    return folder / "home"


@pytest.fixture(scope="module")
def model(home: Path, config: ModelConfig) -> Artifact:
    """7.5 billion zeros in bf16, which take no room on the disk."""
    return random_checkpoint(Registry.open(home), config, sparse=True)


@pytest.mark.parametrize(
    "form",
    [
        "safetensors --proof tensors",
        "llama --proof tensors",
        "baichuan --no-proof",
        "gguf --proof tensors",
        "gguf --dtype q8_0 --no-proof",
    ],
)
def test_within_the_limit(home: Path, model: Artifact, config: ModelConfig, form: str) -> None:
    largest = max(
        2 * rows * (rest[0] if rest else 1) for rows, *rest in expected_shapes(config).values()
    )
    limit = largest + GB

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = ["convert", "large", "--to", *form.split(), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "bc2", *command],
        env={**os.environ, "BC2_HOME": str(home)}, preexec_fn=bound,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = Registry.open(home).resolve(done.stdout.strip())
    Registry.open(home).remove(made)
