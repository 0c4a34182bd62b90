"""Training goes on from imported models, on one process and on two."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warmed
from made_hf_models import NAMES, original
from torch.nn.functional import cross_entropy

from bc2 import recipe
from bc2.convert.importing.import_model import import_model
from bc2.data.loader import Loader
from bc2.model.store import load_config
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry
from bc2.registry.lineage import parent_of_kind
from bc2.train.logs.log_rows import METRICS, read_rows
from bc2.train.pretrain.pretrain_config import PretrainConfig
from bc2.train.pretrain.token_inputs import open_token_inputs


def prepared(name: str, steps: int = 20) -> Artifact:
    """Import a model into the home, and write on.toml, which goes on from it."""
    original(name).write(Path(name))
    registry = Registry.open()
    artifact = import_model(registry, Path(name))
    (tokenizer,) = registry.parents(artifact)
    model = load_config(artifact.path).keyed()
    lines = [
        'name = "on"\n[tokens]\ncorpus = "corpus/small"',
        f'tokenizer = "{tokenizer.digest[:16]}"',
        "[model]", *_lines(model),
        f'[pretrain]\ninit = "{artifact.digest[:16]}"\nlength = "{steps} steps"\nz_loss = 0',
        'batch_tokens = 512\nmicro_batch = 4\nsequence_length = 64\nprecision = "fp32"',
        'schedule = { warmup = "4 steps" }\noptimizer = { learning_rate = 1e-2 }',
        "sample_prompts = 0\neval_tokens = 0",
    ]  # fmt: skip
    Path("on.toml").write_text("\n".join(lines) + "\n")
    return artifact


def _lines(settings: dict[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in settings.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_lines(value)) + " }"
    return json.dumps(value)


def train() -> Artifact:
    return Session(Registry.open()).obtain("checkpoint", recipe.load("on.toml"), command=["bc2"])


def losses(artifact: Artifact) -> list[float]:
    return [row["ce"] for row in read_rows(artifact.file(METRICS)) if row["event"] == "step"]


def first_loss(name: str, trained: Artifact) -> float:
    """What the original's logits say of the first batch, a document at a time."""
    registry = Registry.open()
    config = recipe.load("on.toml").get(PretrainConfig)
    tokens = parent_of_kind(registry, trained, "tokens")
    data = open_token_inputs(config, tokens, parent_of_kind(registry, tokens, "tokenizer"))
    loader = Loader(data.shards, "train", data.mixture, config.sequence_length, data.shards.eos_id)
    batch = loader.batch(0, config.batch_sequences)
    ids, labels = torch.from_numpy(batch.tokens).flatten(), torch.from_numpy(batch.labels).flatten()
    ends = batch.cu_seqlens.tolist()
    said = [
        original(name).logits(ids[first:end].tolist())
        for first, end in itertools.pairwise(ends)
        if first < end
    ]
    return float(cross_entropy(torch.cat(said).double(), labels))


@pytest.mark.parametrize(
    "name",
    [name if name == "llama3" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_training_goes_on_from_the_original(small: Path, name: str) -> None:
    begun = prepared(name)
    trained = train()
    found = losses(trained)
    assert len(found) == 20
    assert found[0] == pytest.approx(first_loss(name, trained), rel=2e-5)
    assert sum(found[-4:]) / 4 < 0.9 * found[0]
    assert begun.digest in trained.manifest.parents
    assert set(trained.files()) >= set(begun.files()) - {"generation.json"}


def spawned(**parallel: int) -> list[float]:
    command = [sys.executable, "-P", "-m", "bc2", "pretrain", "on.toml", "--json", "--nproc", "2"]
    for key, value in parallel.items():
        command += ["--set", f"parallel.{key}={value}"]
    done = warmed.run(
        command, capture_output=True, text=True, children=True, timeout=400, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    registry = Registry.open()
    made = registry.get(json.loads(done.stdout)["digest"])
    found = losses(made)
    for run in registry.list("checkpoint", "on"):  # a layout has no key of its own
        registry.remove(run)
    return found


# One head of keys cannot be parted. In `make test` tests/parallel/test_families.py has the shapes.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "mistral"])
def test_two_tensor_parallel_ranks_are_as_one(small: Path, name: str) -> None:
    prepared(name, 6)
    alone = losses(train())
    for made in Registry.open().list("checkpoint", "on"):
        Registry.open().remove(made)
    assert spawned(tensor=2) == pytest.approx(alone, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_zero_3_on_two_ranks_is_as_one(small: Path, name: str) -> None:
    prepared(name, 6)
    alone = losses(train())
    for made in Registry.open().list("checkpoint", "on"):
        Registry.open().remove(made)
    assert spawned(zero=3) == pytest.approx(alone, rel=1e-4)
