"""Adapters of imported models: beside their base, merged into it, and in PEFT's layout."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import baichuan_reference
import pytest
import torch
from made_adapters import adapter_of
from made_hf_models import OfBaichuan, OfTransformers, original
from made_models import Weights, trained_from
from safetensors.torch import load_file
from torch import Tensor

from bc2.convert.importing.import_model import import_model
from bc2.convert.merging.merge_adapter import merge_adapter
from bc2.generate.load import open_model
from bc2.model.lora_config import LoraConfig
from bc2.registry import Artifact, Draft, Registry

CPU = torch.device("cpu")
#: Baichuan's, one of three matrices with biases and a tied head, and one in bf16.
NAMES = ("baichuan2-7b", "qwen2", "qwen3")


def base_named(name: str, home: Path) -> Artifact:
    original(name).write(home.parent / name)
    return import_model(Registry.open(), home.parent / name)


def ids_of(name: str) -> list[int]:
    chance = torch.Generator().manual_seed(3)
    return torch.randint(original(name).vocab_size, (60,), generator=chance).tolist()


@torch.no_grad()
def logits(artifact: Artifact, ids: Sequence[int]) -> Tensor:
    with open_model(artifact, CPU, torch.float32) as loaded:
        model = loaded.model
        ends = torch.tensor([0, len(ids)], dtype=torch.int32)
        return model.logits(model(torch.tensor(ids), ends, len(ids)))


@pytest.mark.parametrize("name", NAMES)
def test_merged_it_says_what_it_says_unmerged(
    home: Path, bc2: Callable[..., Any], name: str
) -> None:
    base = base_named(name, home)
    registry = Registry.open()
    adapter = adapter_of(registry, base)
    done = bc2("merge", "--adapter", "adapter", "--json")
    assert done.code == 0, done.err
    said = json.loads(done.out)
    merged = registry.get(said["digest"])
    assert (said["made"], said["name"], merged.role) == (True, "adapter-merged", "merged")
    assert merged.parents == (base.digest, adapter.digest)
    ids = ids_of(name)
    beside = logits(adapter, ids)
    # In the size of the logits, which these models have large.
    scale = float(beside.abs().max())
    torch.testing.assert_close(logits(merged, ids), beside, rtol=0, atol=1e-5 * scale)
    assert (beside - logits(base, ids)).abs().max() > 0.01 * scale
    travelling = {"tokenizer.model", "tokenizer.json", "chat.json", "generation.json"}
    assert travelling & {*merged.files()} == travelling & {*base.files()}
    for file in travelling & {*base.files()}:
        assert merged.file(file).read_bytes() == base.file(file).read_bytes()
    again = json.loads(bc2("merge", "--adapter", adapter.ref, "--json").out)
    assert (again["digest"], again["made"]) == (merged.digest, False)
    other = json.loads(bc2("merge", "--adapter", adapter.ref, "--name", "mine", "--json").out)
    assert (other["name"], other["made"]) == ("mine", True)


def test_commands_take_it_beside_its_base(home: Path, bc2: Callable[..., Any]) -> None:
    base = base_named("qwen2", home)
    merged, _ = merge_adapter(Registry.open(), adapter_of(Registry.open(), base))
    (home.parent / "own.jsonl").write_text('{"text": "seven stones"}\n{"text": "a shell"}\n')
    told: list[list[Any]] = []
    for ref in ("adapter", merged.ref, base.ref):
        answer = bc2(
            "generate", ref, "a b", "--max-new-tokens", "8", "--json", "--temperature", "0",
            "--ignore-eos", "--precision", "fp32",
        )  # fmt: skip
        found = bc2("eval", ref, "--bench", "text", "--data", "own.jsonl", "--json",
                    "--precision", "fp32")  # fmt: skip
        assert (answer.code, found.code) == (0, 0), answer.err + found.err
        (line,) = json.loads(answer.out)["results"]
        told.append([line, json.loads(found.out)["total"]["nats"]])
    adapter, made, plain = told
    assert adapter[0] == made[0] != plain[0]
    assert adapter[1] == pytest.approx(made[1], rel=1e-5)
    assert adapter[1] != pytest.approx(plain[1], rel=1e-2)
    shown = json.loads(bc2("registry", "show", "adapter", "--json").out)
    assert (shown["role"], shown["parents"]) == ("adapter", [base.digest])
    newest = bc2("generate", "a b", "--max-new-tokens", "1")
    assert f"taking the newest model, {merged.title}" in newest.err


def test_pefts_names_are_those_of_the_family_that_a_base_descends_from(home: Path) -> None:
    """Baichuan 1 7B has W_pack, and neither NormHead nor ALiBi to tell it by."""
    registry, imported = Registry.open(), base_named("baichuan-7b", home)
    draft = Draft("checkpoint", "tuned", 64 * "a", (imported.digest,), role="chat")
    with registry.stage(draft) as staged:
        for file in imported.files():
            shutil.copyfile(imported.path / file, staged.path / file)
        tuned = staged.publish()
    adapter = adapter_of(registry, tuned)
    config = json.loads(adapter.file("adapter_config.json").read_text())
    assert config["target_modules"][0] == "W_pack"


@pytest.mark.parametrize("name", NAMES)
def test_pefts_files_say_what_ours_say(home: Path, name: str) -> None:
    """By hand: the deltas that they hold, added to the weights of the original."""
    lora = LoraConfig(rank=3, alpha=6.0, targets=("W_pack", "o_proj", "down_proj"))
    adapter = adapter_of(Registry.open(), base_named(name, home), lora)
    config = json.loads(adapter.file("adapter_config.json").read_text())
    packed = name.startswith("baichuan")
    named = ["W_pack"] if packed else ["q_proj", "k_proj", "v_proj"]
    assert config["target_modules"] == [*named, "o_proj", "down_proj"]
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    tensors = load_file(adapter.file("adapter_model.safetensors"))
    deltas = {
        f"{place}.weight": 2.0 * tensors[f"base_model.model.{place}.lora_B.weight"] @ a
        for place, a in (
            (key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"), a)
            for key, a in tensors.items()
            if key.endswith("lora_A.weight")
        )
    }
    assert 2 * len(deltas) == len(tensors)
    ids = ids_of(name)
    expected = with_deltas(name, deltas, ids)
    scale = float(expected.abs().max())
    found = logits(adapter, ids).to(expected.dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def with_deltas(name: str, deltas: dict[str, Tensor], ids: Sequence[int]) -> Tensor:
    """What the original says with these added to its weights."""
    one = original(name)
    if isinstance(one, OfBaichuan):
        wide = {key: tensor.double() for key, tensor in one.state.items()}
        for key, delta in deltas.items():
            wide[key] += delta.double()
        found: Tensor = baichuan_reference.logits(one.release.config, wide, ids)
        return found
    assert isinstance(one, OfTransformers)
    model = copy.deepcopy(one._wide)
    weights = dict(model.named_parameters())
    for key, delta in deltas.items():
        weights[key].add_(delta)
    said: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3"])
def test_the_peft_library_loads_it(home: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    adapter = adapter_of(Registry.open(), base_named(name, home))
    one = original(name)
    assert isinstance(one, OfTransformers)
    folder = home.parent / "peft"
    folder.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter.path / file, folder / file)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(one._wide), str(folder)).eval()
    ids = ids_of(name)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits(adapter, ids), expected, rtol=0, atol=1e-5 * scale)


def test_what_is_no_adapter_and_one_without_its_base(home: Path, bc2: Callable[..., Any]) -> None:
    base = base_named("qwen2", home)
    done = bc2("merge", "--adapter", base.ref)
    assert done.code == 4
    assert "and one of role adapter is needed" in done.err
    adapter = adapter_of(Registry.open(), base)
    shutil.copytree(adapter.path, home.parent / "copy")
    os.environ["BC2_HOME"] = str(home.parent / "other")  # `home` puts it back
    for command in (
        ("merge", "--adapter", "copy"),
        ("generate", "copy", "a"),
        ("eval", "copy", "--bench", "cmmlu"),
        ("bench", "generate", "--checkpoint", "copy"),
    ):
        done = bc2(*command)
        assert (done.code, done.out) == (4, ""), command
        said = " ".join(done.err.split())
        assert f"the model that it is beside, {base.ref}, is not registered here" in said
    assert Registry.open().list() == []


def test_numbers_that_are_none(home: Path, bc2: Callable[..., Any]) -> None:
    def spoil(weights: Weights) -> None:
        weights["model.norm.weight"][3] = float("nan")

    spoilt = trained_from(base_named("qwen2", home), "spoilt", change=spoil)
    adapter = adapter_of(Registry.open(), spoilt)
    there = len(Registry.open().list())
    done = bc2("merge", "--adapter", adapter.ref)
    assert (done.code, done.out) == (3, ""), done.err
    assert "model.norm.weight of checkpoint/adapter, or of its base, holds NaN" in done.err
    assert len(Registry.open().list()) == there
    assert list(Registry.open().staging.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    home: Path, bc2: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open()
    adapter_of(registry, base_named("qwen2", home))
    there = len(registry.list())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bc2.convert.tensor_files.write_at", full)
    done = bc2("merge", "--adapter", "adapter")
    assert done.code not in (0, 1)
    assert "No space left" in done.err or "full" in done.err
    assert len(registry.list()) == there
    assert list(registry.staging.iterdir()) == []
