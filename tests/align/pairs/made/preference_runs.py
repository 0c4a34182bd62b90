"""Runs on pairs that tests make, all in the working directory's home."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from bc2.align.pairs.packed_pairs import PackedPairs

PAIRS = """\
[[pairs.sources]]
name = "made"
path = "pairs.jsonl"

[pairs]
heldout_fraction = 0.2

[{verb}]
init = "checkpoint/small"
chat_layout = "baichuan"
length = "1 epochs"
batch_tokens = 1024
micro_batch = 4
sequence_length = 64
precision = "fp32"
device = "cpu"
checkpoint_every = "4 steps"
eval_every = "8 steps"
optimizer = {{ learning_rate = {rate} }}
"""

REWARD = 'name = "judge"\ndescription = "A small model learns to judge"\n\n' + PAIRS.format(
    verb="reward", rate="3e-3"
)
DPO = (
    'name = "preferred"\ndescription = "A small model learns to prefer"\n\n'
    + PAIRS.format(verb="dpo", rate="1e-3")
    + "sample_tokens = 4\n"
)


def comparisons(count: int) -> list[dict[str, Any]]:
    """Answers of equal length, of which the one that ends in a plus wins; some of two rounds."""
    made = []
    for number in range(count):
        asked = f"What is {number % 17} + {number // 17}?"
        said = f"{number % 17 + number // 17}"
        prompt = [{"role": "user", "content": asked}]
        if number % 5 == 0:
            prompt += [
                {"role": "assistant", "content": "Eh?"}, {"role": "user", "content": "So?"},
            ]  # fmt: skip
        made.append({"prompt": prompt, "chosen": f"{said} +", "rejected": f"{said} -"})
    return made


def stop_at_row(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Send SIGTERM to this process when a row of pairs is first read."""
    plain, seen = PackedPairs.units, list[int]()

    def units(self: PackedPairs, row: int) -> Any:
        seen.append(row)
        if row == number and seen.count(number) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, row)

    monkeypatch.setattr(PackedPairs, "units", units)
