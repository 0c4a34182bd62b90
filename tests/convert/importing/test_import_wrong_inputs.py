"""Models that cannot be imported: one clear message each, and nothing is left behind."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from broken_models import DATA, DISK, USAGE, Bc2, Break, Case, Check, refused, removed, text
from made_hf_models import original
from safetensors.torch import load_file, save_file
from torch import Tensor
from weight_files import write_weights

from bc2.registry import Registry

# -- config.json --------------------------------------------------------------------------


def config(folder: Path, /, drop: tuple[str, ...] = (), **settings: Any) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in data.items() if key not in drop}))


def config_of(drop: tuple[str, ...] = (), **settings: Any) -> Break:
    return partial(config, drop=drop, **settings)


def rope(**settings: Any) -> Break:
    return config_of(rope_parameters={"rope_theta": 10000.0, **settings})


LONG = {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": [2.0]}

CONFIGS = {
    "unsupported": Case(
        config_of(architectures=["Qwen2MoeForCausalLM"]),
        ("Qwen2MoeForCausalLM", "Qwen2ForCausalLM"),
    ),
    "far": Case(config_of(architectures=["GPT2LMHeadModel"]), ("GPT2LMHeadModel",)),
    "no architecture": Case(config_of(drop=("architectures",)), ("architectures",)),
    "an architecture of another kind": Case(config_of(architectures={"a": 1}), ("architectures",)),
    "no width": Case(config_of(drop=("hidden_size",)), ("hidden_size",)),
    "a width of words": Case(config_of(hidden_size="wide"), ("hidden_size",)),
    "no layers": Case(config_of(num_hidden_layers=0), ("layers",)),
    "layers beyond counting": Case(config_of(num_hidden_layers=10**12), ("layers",)),
    "heads that do not fit": Case(config_of(num_key_value_heads=3), ("heads",)),
    "another shape": Case(
        config_of(intermediate_size=97), ("model.layers.0.mlp.", "[96, 64]", "[97, 64]")
    ),
    "fewer layers": Case(config_of(num_hidden_layers=1), ("model.layers.1.",)),
    "more layers": Case(config_of(num_hidden_layers=3), ("model.layers.2.",)),
    "gelu": Case(config_of(hidden_act="gelu"), ("hidden_act", "gelu")),
    "attention bias": Case(config_of(attention_bias=True), ("attention_bias",)),
    "mlp bias": Case(config_of(mlp_bias=True), ("mlp_bias",)),
    "dynamic": Case(rope(rope_type="dynamic", factor=2.0), ("dynamic",)),
    "longrope": Case(rope(**LONG), ("longrope",)),
    "unknown scaling": Case(rope(rope_type="spiral", factor=2.0), ("spiral",)),
    "old dynamic": Case(
        config_of(drop=("rope_parameters",), rope_scaling={"type": "dynamic", "factor": 2.0}),
        ("dynamic",),
    ),
    "partial rotary": Case(
        rope(rope_type="default", partial_rotary_factor=0.5), ("partial_rotary_factor",)
    ),
    "mixed layers": Case(
        config_of(
            use_sliding_window=True, sliding_window=16, max_window_layers=1,
            layer_types=["full_attention", "sliding_attention"],
        ),
        ("a window in 1 of 2 layers",), "qwen2",
    ),
    "mixed layers by number": Case(
        config_of(
            drop=("layer_types",), use_sliding_window=True, sliding_window=16, max_window_layers=1
        ),
        ("a window in 1 of 2 layers",), "qwen2",
    ),
    "quantised": Case(
        config_of(quantization_config={"quant_method": "gptq", "bits": 4}), ("quantised",)
    ),
    "Baichuan 1 or 2": Case(
        config_of(drop=("z_loss_weight",)), ("z_loss_weight",), "baichuan2-7b", "bin"
    ),
    "a scaling of one kind in another": Case(
        rope(rope_type="linear", factor=2.0, low_freq_factor=2.0), ("low_freq_factor",)
    ),
    "two bases": Case(config_of(rope_theta=5.0), ("rope_theta",)),
    "a base of words": Case(rope(rope_type="default", rope_theta="far"), ("rope_theta", "far")),
    "a base beyond counting": Case(rope(rope_theta=10**400), ("rope_theta",)),
    "an eps beyond counting": Case(config_of(rms_norm_eps=10**400), ("rms_norm_eps",)),
    "a number of kinds": Case(config_of(layer_types=5), ("layer_types",), "qwen2"),
    "too few kinds": Case(config_of(layer_types=["full_attention"]), ("layer_types",), "qwen2"),
    "another key of rope": Case(
        rope(rope_type="default", mrope_section=[1, 2]), ("mrope_section",)
    ),
    "attention in both directions": Case(config_of(is_causal=False), ("is_causal",)),
    "layers of several kinds": Case(
        config_of(per_layer_config={"1": {"rms_norm_eps": 1.0}}), ("per_layer_config",)
    ),
    "weights of another name": Case(
        config_of(transformers_weights="other.safetensors"), ("transformers_weights",)
    ),
    "two lengths before scaling": Case(
        config_of(original_max_position_embeddings=128),
        ("original_max_position_embeddings is 128, and of RoPE scaling llama3 32",),
    ),
    "no JSON": Case(text("config.json", "{"), ("config.json",)),
    "no object": Case(text("config.json", "[1]"), ("config.json",)),
    "more than a configuration": Case(
        text("config.json", "[" + "[]," * (6 << 20) + "0]"), ("config.json is too large",)
    ),
    "deep": Case(text("config.json", "[" * 200_000), ("config.json",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(check: Check, name: str) -> None:
    check(CONFIGS[name])


# -- tensors ------------------------------------------------------------------------------


def state(change: Callable[[dict[str, Tensor]], None]) -> Break:
    """Rewrite the weights, in one file of safetensors."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return rewrite


def drops(name: str) -> Break:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return state(drop)


def adds(name: str, tensor: Tensor) -> Break:
    return state(lambda tensors: tensors.update({name: tensor}))


def _int8(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() > 1:
            tensors[name] = (tensor * 100).to(torch.int8)


def _few_rows(folder: Path) -> None:
    """Rows for fewer ids than the tokenizer has."""
    state(lambda all_: all_.update({n: t[:1200] for n, t in all_.items() if len(t) == 1280}))(
        folder
    )
    config(folder, vocab_size=1200)


def _adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": 4})
    )
    save_file(
        {"base_model.model.a.lora_A.weight": torch.ones(4, 8)}, folder / "adapter_model.safetensors"
    )


def _pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def _twice(folder: Path) -> None:
    shards = sorted(folder.glob("model-*.safetensors"))
    one, other = load_file(shards[0]), load_file(shards[1])
    name = next(iter(one))
    save_file(other | {name: one[name]}, shards[1])


MISSING = "model.layers.1.mlp.up_proj.weight"
STRANGE = "model.layers.0.self_attn.gate.weight"

TENSORS = {
    "missing": Case(drops(MISSING), (MISSING,)),
    "missing part of W_pack": Case(
        drops("model.layers.1.self_attn.k_proj.weight"), ("model.layers.1.self_attn.k_proj.weight",)
    ),
    "missing head": Case(drops("lm_head.weight"), ("lm_head.weight",)),
    "missing bias": Case(
        drops("model.layers.0.self_attn.q_proj.bias"),
        ("model.layers.0.self_attn.q_proj.bias",), "qwen2",
    ),
    "unknown": Case(adds(STRANGE, torch.ones(2)), (STRANGE,)),
    "unknown bias": Case(
        adds("model.layers.0.mlp.up_proj.bias", torch.ones(96)),
        ("model.layers.0.mlp.up_proj.bias",),
    ),
    "scalar": Case(adds("model.norm.weight", torch.tensor(1.0)), ("model.norm.weight",)),
    "a beginning that tokenizer.model does not say": Case(
        text("tokenizer_config.json", '{"add_bos_token": true}'), ("add_bos_token",),
        "baichuan2-7b", "bin",
    ),
    "half an end": Case(
        text("generation_config.json", '{"eos_token_id": 1.5}'), ("eos_token_id", "1.5")
    ),
    "an end that is no token": Case(
        text("generation_config.json", '{"eos_token_id": [1201, 1279]}'), ("eos_token_id", "1279")
    ),
    "a temperature of words": Case(
        text("generation_config.json", '{"do_sample": true, "temperature": "hot"}'),
        ("temperature", "hot"),
    ),
    "a template of no text": Case(
        text("chat_template.jinja", b"\xff"), ("chat_template.jinja", "UTF-8")
    ),
    "a pipe": Case(_pipe, ("model.safetensors",)),
    "a file of nothing but size": Case(
        lambda folder: os.truncate(folder / "config.json", 2**36), ("config.json", "too large")
    ),
    "an end": Case(text("tokenizer_config.json", '{"add_eos_token": true}'), ("add_eos_token",)),
    "more ids than rows": Case(_few_rows, ("1,209", "1,200")),
    "a NaN": Case(
        adds("model.norm.weight", torch.tensor([0.5] * 63 + [math.nan])),
        ("model.norm.weight", "NaN"),
    ),
    "another head, said to be tied": Case(
        adds("lm_head.weight", torch.ones(1280, 64)), ("lm_head.weight",), "qwen2"
    ),
    "two types in W_pack": Case(
        adds("model.layers.0.self_attn.k_proj.weight", torch.ones(32, 64, dtype=torch.float16)),
        ("model.layers.0.self_attn.k_proj.weight", "F16"),
    ),
    "int8": Case(state(_int8), ("I8", "quanti")),
    "no weights": Case(removed("model.safetensors"), ("no weights",)),
    "a shard missing": Case(
        removed("model-00002-of-00003.safetensors"), ("model-00002-of-00003.safetensors",),
        shards=3,
    ),
    "a shard of torch missing": Case(
        removed("pytorch_model-00002-of-00003.bin"), ("pytorch_model-00002-of-00003.bin",),
        kind="bin", shards=3,
    ),
    "twice": Case(_twice, ("model.embed_tokens.weight",), shards=3),
    "adapter": Case(_adapter, ("adapter", "someone/base")),
    "no config": Case(removed("config.json"), ("config.json",), code=USAGE),
    "no tokenizer": Case(removed("tokenizer.json"), ("tokenizer",)),
    "broken tokenizer": Case(
        text("tokenizer.json", "{}"), ("tokenizer.json",)
    ),
    "a third of W_pack": Case(
        lambda folder: write_weights(
            folder,
            original("baichuan2-7b").state
            | {"model.layers.1.self_attn.W_pack.weight": torch.ones(48, 48)},
            "bin",
        ),
        ("model.layers.1.self_attn.W_pack.weight", "[48, 48]", "[144, 48]"), "baichuan2-7b", "bin",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(check: Check, name: str) -> None:
    check(TENSORS[name])


# -- what else ----------------------------------------------------------------------------


def test_no_space_left(
    bc2: Bc2, nothing_left: Callable[[], None], home: Path, tmp_path: Path
) -> None:
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(home)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        original("llama3").write(tmp_path / "model")
        refused(bc2, Case(removed(), ("disk full",), code=DISK), tmp_path / "model")
        nothing_left()
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--chat-layout", "chatmll"), USAGE, "chatml"),
        (("--chat-layout", "chatml"), DATA, "<|im_"),
        (("--role", "chatter"), USAGE, "chat"),
        (("--name", "a/b"), USAGE, "a/b"),
    ],
)
def test_options(
    bc2: Bc2, nothing_left: Callable[[], None], tmp_path: Path, options: tuple[str, ...],
    code: int, says: str,
) -> None:  # fmt: skip
    original("llama3").write(tmp_path / "model")
    refused(bc2, Case(removed(), (says,), code=code), tmp_path / "model", *options)
    nothing_left()


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        ("nowhere", DATA, "nowhere"),
        ("hf://", USAGE, "hf://OWNER/NAME"),
        ("hf://one", USAGE, "hf://OWNER/NAME"),
        ("hf://one/../two", USAGE, "hf://OWNER/NAME"),
        ("hf://one/two@", USAGE, "hf://OWNER/NAME"),
    ],
)
def test_sources(
    bc2: Bc2, nothing_left: Callable[[], None], source: str, code: int, says: str
) -> None:
    refused(bc2, Case(removed(), (says,), code=code), source)
    nothing_left()


@pytest.mark.parametrize("switched_off", [True, False])
def test_no_hub(
    bc2: Bc2, nothing_left: Callable[[], None], monkeypatch: pytest.MonkeyPatch, switched_off: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", switched_off)
    refused(bc2, Case(removed(), ("hf://someone/model", "cannot be fetched")), "hf://someone/model")
    nothing_left()


def test_a_template_that_changes_earlier_turns(bc2: Bc2, home: Path, tmp_path: Path) -> None:
    """Each turn is told how many there are: the model comes in, without a layout."""
    original("llama3").write(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ messages | length }}{{ m['content'] }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    done = bc2("registry", "import", tmp_path / "model", "--quiet")
    assert done.code == 0
    assert "adding a turn changes what is before it" in done.err
    artifact = Registry.open().resolve(done.out.strip())
    assert artifact.role == "base"
    assert "chat.json" not in artifact.files()
    asked = "--chat-layout", "llama3", "--quiet", "--name", "chat"
    done = bc2("registry", "import", tmp_path / "model", *asked)
    assert (done.code, done.err) == (0, "")
    assert Registry.open().resolve(done.out.strip()).role == "chat"
