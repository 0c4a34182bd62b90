"""Models of each family come in, go out, are read by transformers, and come in again the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import stories260k
import torch
import transformers
from exported import our_greedy, our_logits, their_greedy, their_logits, theirs, write
from made_hf_models import FAMILIES, original
from safetensors.torch import load_file
from torch import Tensor

from bc2.convert.importing.import_model import import_model
from bc2.generate.generation_defaults import GenerationDefaults
from bc2.model.store import load_config, weight_files
from bc2.registry import Artifact, Registry
from bc2.tokenizer.tokenizer import Tokenizer

DATA = Path(os.environ.get("BC2_TEST_DATA", "../shared/data")).absolute()

#: What each of `FAMILIES` is written as.
WRITTEN_AS = {
    "llama3": "llama", "llama-tied": "llama", "mistral": "mistral", "qwen2": "qwen2",
    "qwen2-yarn": "qwen2", "qwen3": "qwen3",
}  # fmt: skip


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """One of `FAMILIES`, imported into a home of its own; made once."""
    made: dict[str, Artifact] = {}

    def get(name: str) -> Artifact:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            original(name).write(folder / name)
            made[name] = import_model(Registry.open(folder / "home"), folder / name)
        return made[name]

    return get


def weights(artifact: Artifact) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in weight_files(artifact.files()):
        found |= load_file(artifact.file(file))
    return found


def same_weights(one: Artifact, other: Artifact) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


def says_the_same(artifact: Artifact, folder: Path, rows: int) -> None:
    model = theirs(folder)
    chance = torch.Generator().manual_seed(1)
    ids = torch.randint(rows, (150,), generator=chance).tolist()
    torch.testing.assert_close(
        our_logits(artifact, ids), their_logits(model, ids), rtol=0, atol=1e-4
    )
    assert our_greedy(artifact, ids[:40], 64) == their_greedy(model, ids[:40], 64)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ("llama-tied", "qwen2-yarn") else name
        for name in FAMILIES
    ],
)
def test_each_family(imported: Callable[[str], Artifact], tmp_path: Path, name: str) -> None:
    artifact = imported(name)
    plan = write(artifact, tmp_path / "out")
    assert plan.format == WRITTEN_AS[name]
    assert bool(plan.notes) == (plan.format != "llama")
    says_the_same(artifact, tmp_path / "out", original(name).vocab_size)
    again = import_model(Registry.open(tmp_path / "again"), tmp_path / "out")
    assert load_config(again.path) == load_config(artifact.path)
    same_weights(artifact, again)
    for file in ("tokenizer.json", "tokenizer.model"):
        assert (artifact.path / file).exists() == (again.path / file).exists()
    first, second = GenerationDefaults.of(artifact), GenerationDefaults.of(again)
    assert first.sampling() == second.sampling()
    assert set(first.end_ids) <= set(second.end_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_its_tokenizer(imported: Callable[[str], Artifact], tmp_path: Path, name: str) -> None:
    """As it came, to the byte; and AutoTokenizer gives the ids that bc2 gives a whole text."""
    artifact = imported(name)
    write(artifact, tmp_path / "out")
    file = tmp_path / "out" / "tokenizer.json"
    assert file.read_bytes() == (artifact.path / "tokenizer.json").read_bytes()
    ours = Tokenizer.load(artifact.path)
    found = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(found) == ours.vocab_size
    assert found.model_max_length == load_config(artifact.path).context_length
    for text in (
        "",
        "Hello, world!  \n\n",
        "天地玄黄 café 123",
        "a <think> b</think>\t<tool_call>",
    ):
        assert found.encode(text) == ours.encode_whole(text)
    for token in (found.bos_token_id, found.eos_token_id, found.pad_token_id):
        assert token is None or ours.is_control(token)


def test_shards_have_an_index(imported: Callable[[str], Artifact], tmp_path: Path) -> None:
    plan = write(imported("qwen3"), tmp_path / "out", limit=100_000)
    assert len(plan.sizes) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == {one.name for one in plan.tensors}
    ids = list(range(100))
    expected = our_logits(imported("qwen3"), ids)
    found = their_logits(theirs(tmp_path / "out"), ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_stories260k(tmp_path: Path) -> None:
    if not (DATA / "models/stories260K").is_dir():
        pytest.skip("needs shared/data/models, or BC2_TEST_DATA")
    file = stories260k.read(DATA / "models/stories260K/stories260K.gguf")
    stories260k.write(file, tmp_path / "stories260K")
    artifact = import_model(Registry.open(tmp_path / "home"), tmp_path / "stories260K")
    plan = write(artifact, tmp_path / "out")
    assert (plan.format, plan.notes) == ("llama", ())
    says_the_same(artifact, tmp_path / "out", 512)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = Tokenizer.load(artifact.path)
    for text in ("Once upon a time, there was", "Lily and Tom  went\nto", "天"):
        assert tokenizer.encode(text) == ours.encode_whole(text)
    again = import_model(Registry.open(tmp_path / "again"), tmp_path / "out")
    same_weights(artifact, again)
