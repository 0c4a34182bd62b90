"""Pairs with and without faults, ready to be looked at, without a registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from made_lints import MODEL

from bc2.align.lint.pair_lint import PairLintTask
from bc2.align.reward.reward_config import RewardConfig
from bc2.align.samples.rendered_chats import ChatSource
from bc2.data.pairs.make_pairs import make_pairs
from bc2.data.pairs.pairs import ANSWERS
from bc2.data.pairs.pairs_config import PairsConfig, PairSourceConfig
from bc2.model.model_config import ModelConfig
from bc2.tokenizer.tokenizer_config import TokenizerConfig
from bc2.tokenizer.train import train

Rows = Sequence[dict[str, Any]]


def compared(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A row of one pair."""
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def good_pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of different prompts: of every third the longer answer wins."""
    rows = []
    for n in range(count):
        short, long = f"It is {n + 1}.", f"It is {n + 1}, of course, and so on."
        rows.append(
            compared(f"What is {n} and one?", *((long, short) if n % 3 == 0 else (short, long)))
        )
    return rows


def pair_lint_task(folder: Path, sources: dict[str, Rows], **reward: Any) -> PairLintTask:
    """Sources by name, read and ready to be looked at."""
    made = []
    for name, rows in sources.items():
        path = folder / f"{name}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text("".join(lines), encoding="utf-8")
        made.append(PairSourceConfig(name=name, path=str(path)))
    pairs, tokenizer = folder / "pairs", folder / "tokenizer.model"
    pairs.mkdir()
    make_pairs(PairsConfig(sources=tuple(made), heldout_fraction=0.2), pairs)
    text = "The quick brown fox jumps over the lazy dog, and 天地玄黄 follows.\n" * 40
    tokenizer.write_bytes(train([text], TokenizerConfig(vocab_size=512)).model)
    config = RewardConfig.model_validate(
        {"init": "base", "sequence_length": 256, "batch_tokens": 512, "micro_batch": 1,
         "length": "1 epochs", **reward}
    )  # fmt: skip
    source = ChatSource(pairs / ANSWERS, "digest", tokenizer, {"layout": "baichuan"})
    model = ModelConfig(**{**MODEL, "context_length": 256, "head": "scalar"})
    return PairLintTask("made", "0123", "4567", pairs, source, config, model, ends=True)
