"""Conversations, and what a reward model says of each: a reference of all that keeps its head."""

from __future__ import annotations

from collections.abc import Sequence

import small_checkpoints
import torch
from torch import Tensor

from bc2.generate.load import open_model
from bc2.model.transformer import Transformer
from bc2.registry import Artifact

#: How many conversations are scored after each step.
TEXTS = 200


def conversations(count: int = TEXTS) -> list[list[int]]:
    """Ids of texts of different lengths, each with the end token last."""
    tokenizer = small_checkpoints.tokenizer()
    chance = torch.Generator().manual_seed(8)
    lengths = torch.randint(1, 60, (count,), generator=chance).tolist()
    return [
        [*torch.randint(3, tokenizer.vocab_size, (length,), generator=chance).tolist(),
         tokenizer.eos_id]
        for length in lengths
    ]  # fmt: skip


@torch.no_grad()
def scores_of(model: Transformer, texts: Sequence[Sequence[int]]) -> Tensor:
    """The value at the last token of each text, all of them one after another: [N] in fp64."""
    lengths = torch.tensor([0, *map(len, texts)])
    ends = lengths.cumsum(0).int()
    tokens = torch.tensor([token for ids in texts for token in ids])
    values = model.values(model(tokens, ends, int(lengths.max())))
    return values[ends[1:].long() - 1].double()


def scores(artifact: Artifact, texts: Sequence[Sequence[int]]) -> Tensor:
    """Those of a registered reward model, or of an adapter beside its base, in fp32."""
    with open_model(artifact, torch.device("cpu"), torch.float32) as loaded:
        return scores_of(loaded.model, texts)
