"""Imported models are the originals: of transformers, and of Baichuan's releases.

Logits, greedy tokens, and each weight, for every family that `made_hf_models` makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_baichuan
import pytest
import torch
import transformers
from made_hf_models import FAMILIES, NAMES, WINDOW, OfTransformers, original
from safetensors.torch import load_file
from weight_files import Kind

from bc2.convert.importing.import_model import import_model
from bc2.generate.engine import InferenceEngine
from bc2.generate.engine_config import EngineConfig
from bc2.generate.requests import Request
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.store import load_config, load_model, weight_files
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Registry
from bc2.tokenizer.chat_file import chat_of
from bc2.tokenizer.tokenizer import Tokenizer
from bc2.tokenizer.tokenizer_files import tokenizer_path

Imported = Callable[..., Artifact]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A model of `NAMES`, imported into a home of its own; made once."""
    made: dict[tuple[str, Kind, int], Artifact] = {}

    def get(name: str, kind: Kind = "safetensors", shards: int = 1) -> Artifact:
        if (name, kind, shards) not in made:
            folder = tmp_path_factory.mktemp(name)
            original(name).write(folder / name, kind, shards)
            registry = Registry.open(folder / "home")
            made[name, kind, shards] = import_model(registry, folder / name)
        return made[name, kind, shards]

    return get


def ids_of(name: str, count: int) -> list[int]:
    chance = torch.Generator().manual_seed(count)
    return torch.randint(original(name).vocab_size, (count,), generator=chance).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits(imported: Imported, name: str) -> None:
    ours: Transformer = load_model(imported(name).path, dtype=torch.float32)
    for length in (1, 40, 200):
        ids = ids_of(name, length)
        ends = torch.tensor([0, length], dtype=torch.int32)
        with torch.no_grad():
            found = ours.logits(ours(torch.tensor(ids), ends, length))
        expected = original(name).logits(ids).to(found.dtype)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(imported: Imported, name: str) -> None:
    ours: Transformer = load_model(imported(name).path, dtype=torch.float32)
    engine = InferenceEngine(ours, EngineConfig(cache_bytes=2**24), eos_id=-1, poison=True)
    prompts = [ids_of(name, length) for length in (1, 7, 40)]
    settings = SamplingConfig(temperature=0.0, max_new_tokens=64)
    said = engine.generate([Request(prompt, settings) for prompt in prompts])
    for prompt, answer in zip(prompts, said, strict=True):
        found = answer.continuations[0].ids
        assert found == original(name).greedy(prompt, 64)
        assert len(set(found)) > 16, "too uniform to show anything"


@pytest.mark.parametrize("name", NAMES)
def test_each_weight_is_the_originals_to_the_bit(imported: Imported, name: str) -> None:
    artifact = imported(name)
    found: dict[str, torch.Tensor] = {}
    for file in weight_files(artifact.files()):
        found |= load_file(artifact.file(file))
    expected = original(name).imported()
    assert found.keys() == expected.keys()
    for path, tensor in expected.items():
        assert found[path].dtype == tensor.dtype
        assert torch.equal(found[path], tensor), path


@pytest.mark.parametrize("name", NAMES)
def test_the_artifacts(imported: Imported, name: str) -> None:
    artifact, source = imported(name), original(name)
    home = artifact.path
    while home.name != "home":
        home = home.parent
    registry = Registry.open(home)
    (tokenizer,) = registry.parents(artifact)
    assert (artifact.kind, artifact.name, tokenizer.kind, tokenizer.name) == (
        "checkpoint", name, "tokenizer", name,
    )  # fmt: skip
    assert artifact.role == ("chat" if source.layout else "base")
    files = {name for name in artifact.files() if not name.endswith(".safetensors")}
    chat = {"chat.json"} if source.layout else set()
    assert files - {"generation.json"} == {"model.json", source.tokenizer_file} | chat
    assert set(tokenizer.files()) == {source.tokenizer_file} | chat
    assert tokenizer_path(artifact).read_bytes() == tokenizer_path(tokenizer).read_bytes()
    assert load_config(artifact.path).context_length == WINDOW
    registry.verify(artifact)
    registry.verify(tokenizer)


def payload(artifact: Artifact) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in artifact.manifest.files}


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("qwen2", "baichuan2-13b") else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_each_kind_of_file_gives_the_same(imported: Imported, name: str) -> None:
    whole = payload(imported(name))
    kinds: tuple[Kind, ...] = ("safetensors", "bin")
    for kind in kinds:
        for shards in (1, 3):
            assert payload(imported(name, kind, shards)) == whole, (kind, shards)


def test_a_file_of_torch_may_hold_views_and_parameters(imported: Imported, tmp_path: Path) -> None:
    """Tensors in one storage at several places, and such as ask for a gradient."""
    source = original("baichuan2-7b")
    source.write(tmp_path / "model", "bin")
    numbers = torch.cat([torch.ones(7), *(tensor.flatten() for tensor in source.state.values())])
    state, at = {}, 7
    for name, tensor in source.state.items():
        view = numbers[at : at + tensor.numel()].view(tensor.shape)
        state[name] = torch.nn.Parameter(view) if "norm" in name else view
        at += tensor.numel()
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    artifact = import_model(Registry.open(tmp_path / "home"), tmp_path / "model")
    assert payload(artifact) == payload(imported("baichuan2-7b"))


def test_what_is_imported_again_is_found(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    original("qwen2").write(tmp_path / "qwen2")
    first = import_model(registry, tmp_path / "qwen2")
    again = import_model(registry, tmp_path / "qwen2")
    assert again.digest == first.digest
    assert len(registry.list()) == 2
    named = import_model(registry, tmp_path / "qwen2", name="other", role="chat")
    assert (named.name, named.role) == ("other", "chat")
    assert payload(named) == payload(first)


@pytest.mark.parametrize("file", ["tokenizer.json", "model.json", "model.safetensors"])
def test_what_is_damaged_is_imported_again(tmp_path: Path, file: str) -> None:
    registry = Registry.open(tmp_path / "home")
    original("qwen2").write(tmp_path / "qwen2")
    first = import_model(registry, tmp_path / "qwen2")
    (tokenizer,) = registry.parents(first)
    for artifact in (first, tokenizer):
        path = artifact.path / file
        if path.exists():
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = import_model(registry, tmp_path / "qwen2")
    assert again.digest == first.digest
    for artifact in registry.list():
        registry.verify(artifact)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_configuration_as_transformers_4_wrote_it(
    imported: Imported, tmp_path: Path, name: str
) -> None:
    """With rope_theta and rope_scaling, torch_dtype, and without what is a default."""
    original(name).write(tmp_path / name)
    path = tmp_path / name / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    for absent in ("layer_types", "attention_bias", "mlp_bias", "pretraining_tp", "use_cache"):
        config.pop(absent, None)
    if name == "llama-tied":  # as many as there are heads, and the usual base
        del config["num_key_value_heads"], config["rope_theta"], config["rope_scaling"]
    path.write_text(json.dumps(config))
    artifact = import_model(Registry.open(tmp_path / "home"), tmp_path / name)
    assert payload(artifact) == payload(imported(name))


MESSAGES = [
    {"role": "user", "content": "What is 2 + 2? <|im_end|> </s>"},
    {"role": "assistant", "content": "It is 四.\n"},
    {"role": "user", "content": "def f(x):\n\treturn x"},
]


@pytest.mark.parametrize("name", [name for name in NAMES if original(name).layout])
def test_chats_render_as_in_the_original(imported: Imported, tmp_path: Path, name: str) -> None:
    artifact, source = imported(name), original(name)
    tokenizer = Tokenizer.load(tokenizer_path(artifact))
    found = chat_of(artifact, tokenizer).prompt(MESSAGES)
    if isinstance(source, OfTransformers):
        # Hostile text alone may differ: ours stays text.
        plain = [{**one, "content": one["content"].replace("</s>", "")} for one in MESSAGES]
        plain = [{**one, "content": one["content"].replace("<|im_end|>", "")} for one in plain]
        source.write(tmp_path / name)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        expected = theirs.apply_chat_template(
            plain, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert chat_of(artifact, tokenizer).prompt(plain) == expected
        controls = [id for id in found if tokenizer.is_control(id)]
        assert controls == [id for id in expected if tokenizer.is_control(id)]
    else:
        said = [tokenizer.encode(one["content"]) for one in MESSAGES]
        assert found == [195, *said[0], 196, *said[1], 195, *said[2], 196]


def test_a_layout_may_be_named(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "home")
    original("baichuan-7b").write(tmp_path / "plain")
    artifact = import_model(registry, tmp_path / "plain", chat_layout="baichuan")
    assert artifact.role == "chat"
    assert chat_of(artifact, Tokenizer.load(tokenizer_path(artifact))).name == "baichuan"


@pytest.mark.parametrize("name", ["baichuan-13b", "baichuan2-7b", "baichuan2-13b"])
def test_generation_settings(imported: Imported, name: str) -> None:
    artifact = imported(name)
    found = json.loads(artifact.file("generation.json").read_text())
    expected: dict[str, Any] = {
        "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05,
        "max_new_tokens": 48,
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert found.keys() - expected.keys() <= {"end_ids"}


def test_greedy_generation_settings_and_more_ends(tmp_path: Path) -> None:
    """``do_sample: false`` is temperature 0, whatever else is said; ends beside the end of text."""
    original("llama3").write(tmp_path / "llama3")
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": [1201, 1207]}
    (tmp_path / "llama3" / "generation_config.json").write_text(json.dumps(settings))
    artifact = import_model(Registry.open(tmp_path / "home"), tmp_path / "llama3")
    found = json.loads(artifact.file("generation.json").read_text())
    assert found["temperature"] == 0
    assert 1207 in found["end_ids"]


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    original("baichuan2-7b").write(tmp_path / "model")
    import_model(Registry.open(tmp_path / "home"), tmp_path / "model")
    assert (tmp_path / "model" / made_baichuan.REMOTE_CODE).exists()
    assert not (tmp_path / "model" / made_baichuan.MARKER).exists()


@pytest.mark.parametrize("name", ["llama3", "qwen2", "baichuan2-7b"])
def test_bc2_generate_says_what_the_original_says(
    home: Path, bc2: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    """Of a prompt's text, which begins as the original's tokenizer begins it."""
    source, prompt = original(name), "def main(argument):\n    天地"
    source.write(tmp_path / name)
    done = bc2("registry", "import", tmp_path / name, "--quiet")
    assert done.code == 0, done.err
    ref = done.out.strip()
    tokenizer = Tokenizer.load(tmp_path / name / source.tokenizer_file)
    if isinstance(source, OfTransformers):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        ids = theirs(prompt)["input_ids"]
    else:
        ids = tokenizer.encode(prompt)
    expected = tokenizer.generated_bytes(source.greedy(ids, 64)).decode("utf-8", "replace")
    options = ("--temperature", 0, "--repetition-penalty", 1, "--max-new-tokens", 64)
    said = bc2("generate", ref, prompt, *options, "--ignore-eos", "--json", "--precision", "fp32")
    assert said.code == 0, said.err
    (result,) = json.loads(said.out)["results"]
    assert result["text"] == expected
    assert result["tokens"] == 64
