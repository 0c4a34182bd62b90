"""Conversations with and without faults, and a report of all of them, without a registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bc2.align.lint.lint import LintTask
from bc2.align.samples.rendered_chats import ChatSource
from bc2.align.sft.sft_config import SftConfig
from bc2.data.chats.chats_config import ChatsConfig, ChatSourceConfig
from bc2.data.chats.make_chats import make_chats
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

#: What `[model]` of the fine-tuned model is.
MODEL: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2,
    "context_length": 128,
}  # fmt: skip


def asked(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row of one round."""
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **more},
        ]
    }


def good(count: int) -> list[dict[str, Any]]:
    """Rows of one round, all different."""
    return [asked(f"What is {n} and one?", f"It is {n + 1}, of course.") for n in range(count)]


def lint_task(folder: Path, sources: dict[str, Sequence[dict[str, Any]]], **sft: Any) -> LintTask:
    """Sources by name, read and ready to be looked at."""
    made = []
    for name, rows in sources.items():
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        made.append(ChatSourceConfig(name=name, path=str(path)))
    chats, tokenizer = folder / "chats", folder / "tokenizer.model"
    chats.mkdir()
    make_chats(ChatsConfig(sources=tuple(made), heldout_fraction=0.2), chats)
    text = "The quick brown fox jumps over the lazy dog, and 天地玄黄 follows.\n" * 40
    tokenizer.write_bytes(train([text], TokenizerConfig(vocab_size=512)).model)
    config = SftConfig(
        init="base", sequence_length=128, batch_tokens=512, micro_batch=1, length="1 epochs", **sft
    )
    source = ChatSource(chats, "digest", tokenizer, {"layout": "baichuan"})
    return LintTask("made", "0123", "4567", source, config, ModelConfig(**MODEL))
