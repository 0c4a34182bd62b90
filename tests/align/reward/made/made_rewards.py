"""Reward models made by hand, all of them and as adapters, and comparisons to score.

``import made_rewards`` from any test.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import made_checkpoints
import torch
from made_adapters import LORA
from made_adapters import drawn as drawn_adapters
from safetensors.torch import save_file

from bc2.model.model_config import ModelConfig
from bc2.model.saved_adapter import write_adapter
from bc2.model.store import CONFIG, load_config, save_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact, Draft, Registry, stage_key
from bc2.tokenizer.tokenizer_config import TOKENIZER_FILE

LAYOUT = b'{"layout": "baichuan"}'

#: What a run keeps of its held-out scores.
SCALE = {"score_centre": 0.5, "score_scale": 2.0}


def drawn(seed: int = 1, window: int = 128) -> Transformer:
    """A model with drawn weights and a scalar head."""
    model = Transformer(
        ModelConfig(
            vocab_size=made_checkpoints.VOCABULARY, hidden_size=32, intermediate_size=48,
            num_layers=1, num_heads=2, context_length=window, initializer_range=0.5,
            head="scalar",
        )
    )  # fmt: skip
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def register(
    home: Path, name: str = "judge", *, seed: int = 1, window: int = 128,
    facts: dict[str, Any] | None = None,
) -> Artifact:  # fmt: skip
    """A registered reward model."""
    model = drawn(seed, window)
    key = stage_key("checkpoint", 1, {"name": name, "seed": seed}, ())
    draft = Draft("checkpoint", name, key, role="reward", facts=SCALE if facts is None else facts)
    with Registry.open(home).stage(draft) as staged:
        save_model(staged.path, model.config, model.state_dict())
        (staged.path / TOKENIZER_FILE).write_bytes(made_checkpoints.tokenizer_bytes())
        (staged.path / "chat.json").write_bytes(LAYOUT)
        return staged.publish()


def register_adapter(home: Path, base: Artifact, name: str = "judging") -> Artifact:
    """An adapter beside a model that speaks, with a scalar head of its own."""
    config = load_config(base.path).model_copy(update={"head": "scalar"})
    head = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(9))
    key = stage_key("checkpoint", 1, {"name": name}, [base.digest])
    draft = Draft("checkpoint", name, key, (base.digest,), role="adapter", facts=SCALE)
    with Registry.open(home).stage(draft) as staged:
        for file in (TOKENIZER_FILE, "chat.json"):
            shutil.copyfile(base.path / file, staged.path / file)
        (staged.path / CONFIG).write_text(config.model_dump_json())
        tensors = {**drawn_adapters(load_config(base.path)), "score.weight": head}
        save_file(tensors, staged.path / "model.safetensors", metadata={"format": "pt"})
        write_adapter(staged.path, LORA, base)
        return staged.publish()


def comparisons(count: int) -> list[dict[str, Any]]:
    """Pairs of prompt, chosen and rejected, some of two rounds; answers of different lengths."""
    made = []
    for number in range(count):
        prompt = [{"role": "user", "content": f"答案是 {number}?"}]
        if number % 3 == 0:
            prompt += [
                {"role": "assistant", "content": "What?"}, {"role": "user", "content": "Answer."},
            ]  # fmt: skip
        row = {"prompt": prompt, "chosen": f"A {number} +" + " ja" * (number % 4)}
        made.append({**row, "rejected": f"B {number} - no"})
    return made


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
