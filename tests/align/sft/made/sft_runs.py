"""Fine-tuning runs that tests make, all in the working directory's home."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bc2 import recipe
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Registry

CHAT = """\
name = "chat"
description = "A small model learns to answer"

[[chats.sources]]
name = "made"
path = "chats.jsonl"

[chats]
heldout_fraction = 0.1

[sft]
init = "checkpoint/small"
chat_layout = "baichuan"
length = "3 epochs"
batch_tokens = 512
micro_batch = 2
sequence_length = 64
precision = "fp32"
device = "cpu"
checkpoint_every = "4 steps"
eval_every = "8 steps"
sample_tokens = 4
optimizer = { learning_rate = 3e-3 }
"""


def conversations(count: int) -> list[dict[str, Any]]:
    """Short questions and answers in the `messages` form, some of two rounds."""
    made = []
    for number in range(count):
        asked = f"What is {number % 17} + {number // 17}?"
        said = f"{number % 17 + number // 17}"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        if number % 5 == 0:
            messages += [
                {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
            ]  # fmt: skip
        made.append({"messages": messages})
    return made


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def obtain(name: str = "chat.toml", *overrides: str) -> Artifact:
    return Session(Registry.open()).obtain(
        "checkpoint", recipe.load(name, overrides), command=["bc2"]
    )
