"""Packed equals alone: computed on the user's own rows, by a small model of the recipe's kind.

Shapes: T tokens of a row, N samples in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bc2.align.lint.lint_report import PackingProof
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.sample import Sample
from bc2.align.sft.sft_objective import Answers
from bc2.data.loader import IGNORED, SAMPLE, Batch
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

#: The small model: layers, width, feed-forward width, channels of a head.
_LAYERS, _WIDTH, _FEED_FORWARD, _CHANNELS = 2, 64, 96, 16
#: Most key heads of it; query heads follow from how many read each.
_KEY_HEADS = 2
#: Samples of a row of which a token is changed, the first and the last among them.
_CHANGED = 5
#: Most tokens and samples of a row that are tried: more cost seconds, and say no more.
_MOST_TOKENS, _MOST_SAMPLES = 2048, 32


def prove_packing(
    rows: Sequence[Sequence[Sample]], sequence_length: int, config: ModelConfig
) -> PackingProof | None:
    """Compare rows with their samples alone, and change tokens in them.

    Args:
        rows: as they are packed, each with at most `sequence_length` tokens.
        config: the recipe's model, whose positions, norms and groups of heads the small one has.

    Returns:
        What was found; None if no row has a sample with a label.
    """
    kept = [_few(row) for row in rows]
    kept = [row for row in kept if row]
    if not kept:
        return None
    compact, vocabulary = _renumbered(kept)
    small = small_model(config, vocabulary)
    model = Transformer(small)
    model.init_weights(torch.Generator().manual_seed(0))
    length = min(sequence_length, max(sum(len(one.tokens) for one in row) for row in compact) + 1)
    found = [_prove_row(model, row, length) for row in compact]
    return PackingProof(
        rows=len(kept),
        samples=sum(len(row) for row in kept),
        tokens=sum(len(one.tokens) for row in kept for one in row),
        model=_described(small),
        loss_difference=max(one.loss for one in found),
        gradient_difference=max(one.gradient for one in found),
        changed=sum(one.changed for one in found),
        leaked=max(one.leaked for one in found),
        felt=min(one.felt for one in found),
        unbounded=max(one.unbounded for one in found),
    )


def _few(row: Sequence[Sample]) -> list[Sample]:
    """The samples of a row that have labels and, in their order, room within the limits."""
    learnt = [sample for sample in row if sample.trained]
    kept: list[Sample] = []
    room = _MOST_TOKENS
    for sample in learnt:
        if len(sample.tokens) <= room and len(kept) < _MOST_SAMPLES:
            kept.append(sample)
            room -= len(sample.tokens)
    return kept or learnt[:1]


def _renumbered(rows: Sequence[Sequence[Sample]]) -> tuple[list[list[Sample]], int]:
    """The samples with the ids that they have numbered from 1, and how many there are then.

    The head of a large vocabulary would take all the time, and knows nothing of positions.
    """
    samples = [sample for row in rows for sample in row]
    every = [ids for one in samples for ids in (one.tokens, one.labels)]
    known: npt.NDArray[np.int32] = np.unique(np.concatenate(every))
    known = known[known != IGNORED]

    def number(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        found = np.searchsorted(known, ids) + 1
        return np.where(ids == IGNORED, IGNORED, found).astype(np.int32)

    renumbered = [
        [replace(one, tokens=number(one.tokens), labels=number(one.labels)) for one in row]
        for row in rows
    ]
    return renumbered, len(known) + 1


def small_model(config: ModelConfig, vocabulary: int) -> ModelConfig:
    """A model of a few thousand parameters of the same kind."""
    keys = min(_KEY_HEADS, config.kv_heads)
    return ModelConfig.model_validate(
        {
            **config.model_dump(),
            "vocab_size": vocabulary,
            "hidden_size": _WIDTH,
            "intermediate_size": _FEED_FORWARD,
            "num_layers": _LAYERS,
            "num_heads": keys * config.heads_per_key,
            "num_kv_heads": keys,
            "head_dim": _CHANNELS,
            "initializer_range": 0.1,
        }
    )


def _described(config: ModelConfig) -> str:
    heads = f"{config.num_heads} heads over {config.kv_heads} of keys"
    return f"{config.num_layers} layers of {config.hidden_size}, {config.position}, {heads}, fp32"


@dataclass(frozen=True)
class _RowProof:
    """As `PackingProof`, of one row."""

    loss: float
    gradient: float
    changed: int
    leaked: float
    felt: float
    unbounded: float


def _prove_row(model: Transformer, row: Sequence[Sample], length: int) -> _RowProof:
    packed = make_batch([row], length, 0)
    alone = [make_batch([[sample]], len(sample.tokens), 0) for sample in row]
    together = _losses(model, packed)
    apart = torch.cat([_losses(model, one) for one in alone])
    open_row = _losses(model, _without_boundaries(packed))
    chosen = np.unique(np.linspace(0, len(row) - 1, min(_CHANGED, len(row))).astype(int))
    moved = [_moved(model, packed, int(number), together) for number in chosen]
    return _RowProof(
        loss=_difference(together, apart),
        gradient=_gradient_difference(model, packed, alone),
        changed=len(chosen),
        leaked=max(others for others, _ in moved),
        felt=min(own for _, own in moved),
        unbounded=_difference(open_row, apart),
    )


@torch.no_grad()
def _losses(model: Transformer, batch: Batch) -> Tensor:
    """The loss of each sample, in nats: [N] fp64."""
    hidden = model(
        torch.from_numpy(batch.tokens).flatten(), torch.from_numpy(batch.cu_seqlens),
        batch.max_seqlen,
    )  # fmt: skip
    labels = torch.from_numpy(batch.labels).flatten()
    nats = -model.language_head.log_probs(hidden, labels).log_probs.double()
    samples = torch.from_numpy(batch.token_fields[SAMPLE]).flatten()
    learnt = labels != IGNORED
    sums = torch.zeros(batch.num_samples, dtype=torch.float64)
    return sums.index_add(0, samples[learnt], nats[learnt])


def _without_boundaries(batch: Batch) -> Batch:
    whole = np.array([0, batch.tokens.size], np.int32)
    return replace(batch, cu_seqlens=whole, max_seqlen=batch.tokens.size)


def _difference(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs() / expected.abs()).max())


def _gradient_difference(model: Transformer, packed: Batch, alone: Sequence[Batch]) -> float:
    together, apart = _gradient(model, [packed]), _gradient(model, alone)
    return float((together - apart).norm() / apart.norm())


def _gradient(model: Transformer, batches: Sequence[Batch]) -> Tensor:
    """The gradient of the summed loss of batches, all parameters in one: fp64."""
    total = torch.zeros(sum(weight.numel() for weight in model.parameters()), dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        Answers()(model, batch).total.backward()  # type: ignore[no-untyped-call]
        grads = [weight.grad for weight in model.parameters()]
        total += torch.cat([one.double().flatten() for one in grads if one is not None])
    return total


def _moved(model: Transformer, packed: Batch, number: int, before: Tensor) -> tuple[float, float]:
    """Change the first token of a sample: the largest change of others' losses, and its own."""
    place = int(np.flatnonzero(packed.token_fields[SAMPLE].flatten() == number)[0])
    tokens = packed.tokens.copy()
    highest = model.config.vocab_size - 1
    tokens.flat[place] = tokens.flat[place] % highest + 1 if highest > 1 else 0
    change = (_losses(model, replace(packed, tokens=tokens)) - before).abs()
    own = float(change[number])
    change[number] = 0
    return float(change.max()), own
