"""Packed rows: each sample twice in two epochs, whatever ranks, and equal to samples alone."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_samples import drawn, packed
from torch import Tensor

from bc2.align.samples import packed_rows
from bc2.align.samples.packed_batch import WEIGHT, make_batch
from bc2.align.samples.packing import Rows, pack_rows
from bc2.align.samples.row_stream import RowStream
from bc2.align.samples.sample import Sample
from bc2.align.sft.packed_conversations import PackedSamples
from bc2.align.sft.sft_objective import Answers
from bc2.data.loader import IGNORED, SAMPLE, Batch
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

V, LENGTH = 64, 64


def stream(rows: PackedSamples, total: int | None, **changes: Any) -> RowStream:
    options = {"sequences": 4, "micro_batch": 1, "timeout_s": 20.0, "check": lambda: None}
    return RowStream(rows, total=total, names=("made",), **(options | changes))


def read(one: RowStream, steps: int, first: int = 0) -> list[Any]:
    with one.steps(first) as every:
        return [next(every) for _ in range(steps)]


def tokens_of(batches: list[Batch]) -> list[bytes]:
    """The samples of some batches, as they were before they were packed."""
    return [
        batch.tokens[batch.token_fields[SAMPLE] == number].astype(np.int32).tobytes()
        for batch in batches
        for number in range(batch.num_samples)
    ]


def test_two_epochs_read_each_sample_twice_and_the_last_step_is_smaller() -> None:
    samples = drawn(200, 40, V)
    rows = packed(samples, LENGTH)
    total = rows.first_row(2)
    count = -(-total // 7)
    assert total % 7
    steps = read(stream(rows, total, sequences=7), count)
    assert [step.sequences for step in steps] == [7] * (count - 1) + [total % 7]
    assert [step.first for step in steps] == list(range(0, total, 7))
    found = sorted(tokens_of([batch for step in steps for batch in step.batches]))
    assert found == sorted([one.tokens.tobytes() for one in samples] * 2)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_a_step_has_the_same_rows_whatever_ranks_and_micro_batch(ranks: int, micro: int) -> None:
    rows = packed(drawn(90, 40, V), LENGTH)
    total = rows.first_row(1)
    steps = -(-total // 4)
    alone = read(stream(rows, total), steps)
    every = [
        read(stream(rows, total, micro_batch=micro, ranks=ranks, rank=rank), steps)
        for rank in range(ranks)
    ]
    for number, step in enumerate(alone):
        mine = [one[number] for one in every]
        assert {len(part.batches) for part in mine} == {len(mine[0].batches)}
        assert {part.sequences for part in mine} == {step.sequences}
        together = tokens_of([batch for part in mine for batch in part.batches])
        assert sorted(together) == sorted(tokens_of(step.batches))
        for name, value in step.weights.items():
            assert sum(part.weights[name] for part in mine) == pytest.approx(value)


def test_rows_without_samples_are_of_no_source() -> None:
    rows = packed(drawn(30, 40, V), LENGTH)
    total = rows.first_row(1)
    (last,) = read(stream(rows, total, micro_batch=4), 1, first=total - 1)
    assert last.sequences == 1
    assert last.sources == {"made": 1}
    assert last.weights["samples"] == len(rows.row(total - 1))


def test_a_row_number_says_everything() -> None:
    rows = packed(drawn(40, 40, V), LENGTH)
    straight = read(stream(rows, None), 9)
    assert rows.first_row(2) < 28  # from the third epoch on
    again = read(stream(packed(drawn(40, 40, V), LENGTH), None), 3, first=24)
    for one, other in zip(straight[6:], again, strict=True):
        assert np.array_equal(one.batches[0].tokens, other.batches[0].tokens)


def test_epochs_have_their_own_rows_and_a_fraction_its_first() -> None:
    rows = packed(drawn(90, 40, V), LENGTH)
    one, two = rows.first_row(1), rows.first_row(2)
    assert rows.total_rows(Decimal(2)) == two
    assert rows.total_rows(Decimal("1.5")) == one + -(-(two - one) // 2)
    for epoch in range(2):
        numbers = range(rows.first_row(epoch), rows.first_row(epoch + 1))
        found = sum(len(rows.row(number)) for number in numbers)
        assert found == 90


def test_two_readers_at_once_find_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = drawn(40, 40, V)
    alone = packed(samples, LENGTH)
    expected = [alone.row(number)[0].tokens.tobytes() for number in range(60)]

    def slow(*given: Any) -> Rows:
        time.sleep(0.005)
        return pack_rows(*given)

    monkeypatch.setattr(packed_rows, "pack_rows", slow)
    rows = packed(samples, LENGTH)

    def read_all(_: int) -> list[bytes]:
        return [rows.row(number)[0].tokens.tobytes() for number in range(60)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read_all, range(4))) == [expected] * 4


def test_steps_after_the_end_of_the_run_are_full() -> None:
    """As after a rollback, which leaves data out and makes the same number of steps."""
    rows = packed(drawn(90, 40, V), LENGTH)
    (step,) = read(stream(rows, rows.first_row(1)), 1, first=rows.first_row(1))
    assert step.sequences == 4


def test_mean_over_samples_gives_each_sample_one_weight() -> None:
    rows = packed(drawn(90, 40, V), LENGTH, by_sample=True)
    (step,) = read(stream(rows, None), 1)
    assert step.weights[WEIGHT] == pytest.approx(step.weights["samples"])


# -- packed equals alone -------------------------------------------------------------------


def model_of(position: str, **changes: Any) -> Transformer:
    config = ModelConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
        context_length=LENGTH, position=position, **changes,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(1))
    return model


def gradients(model: Transformer, batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = Answers()(model, batch).total
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def naive(model: Transformer, samples: list[Sample]) -> tuple[float, dict[str, Tensor]]:
    """In float64, one sample after another, by torch's own cross-entropy of all logits."""
    wide = copy.deepcopy(model).double()
    total = torch.zeros((), dtype=torch.float64)
    for one in samples:
        tokens = torch.from_numpy(one.tokens).long()
        hidden = wide(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
        weight = wide.lm_head.weight
        logits = hidden @ (F.normalize(weight, dim=-1) if wide.config.norm_head else weight).T
        labels = torch.from_numpy(one.labels).long()
        ce = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        total = total + (ce * torch.from_numpy(one.weights)).sum()
    total.backward()
    return total.item(), {n: p.grad for n, p in wide.named_parameters() if p.grad is not None}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(
        float((found[n].double() - expected[n]).norm() / expected[n].norm()) for n in expected
    )


@pytest.mark.parametrize("backend", ["sdpa", "bmm"])  # varlen and flash have no CPU kernels
@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("weighted", [False, True])
def test_packed_equals_alone(position: str, backend: str, weighted: bool) -> None:
    model = model_of(position)
    for layer in model.model.layers:
        layer.self_attn.backend = backend
    samples = drawn(40, LENGTH, V, weighted=weighted)
    rows = packed(samples, LENGTH, weighted=weighted)
    together = [
        rows.batch(range(at, min(at + 3, rows.first_row(1))))
        for at in range(0, rows.first_row(1), 3)
    ]
    alone = [make_batch([[one]], len(one.tokens), 2, weighted=weighted) for one in samples]
    loss, found = gradients(model, together)
    for expected in (gradients(model, alone), naive(model, samples)):
        assert loss == pytest.approx(expected[0], rel=1e-6)
        assert apart(found, expected[1]) < 1e-5


@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_packed_equals_alone_in_bf16(position: str) -> None:
    """bf16 has 8 bits: packed and alone are as near to each other as alone is to fp32."""
    model = model_of(position)
    samples = drawn(40, LENGTH, V)
    alone = [make_batch([[one]], len(one.tokens), 2) for one in samples]
    rows = packed(samples, LENGTH)
    exact, wide = gradients(model, alone)
    model.bfloat16()
    loss, found = gradients(model, [rows.batch(range(rows.first_row(1)))])
    other, single = gradients(model, alone)
    assert abs(loss - other) <= 2 * abs(other - exact) + 1e-4 * exact
    assert loss == pytest.approx(exact, rel=2e-3)
    assert apart(found, {n: g.double() for n, g in single.items()}) < 3e-2
    assert apart(found, {n: g.double() for n, g in wide.items()}) < 3e-2


def test_a_changed_token_changes_nothing_in_other_samples_of_its_row() -> None:
    model = model_of("rope")
    samples = [one for one in drawn(12, 12, V) if len(one.tokens) > 2][:5]
    batch = make_batch([samples], LENGTH, 2)

    def log_probs() -> Tensor:
        tokens = torch.from_numpy(batch.tokens).flatten()
        hidden = model(tokens, torch.from_numpy(batch.cu_seqlens), batch.max_seqlen)
        labels = torch.from_numpy(np.where(batch.labels == IGNORED, 0, batch.labels)).flatten()
        return model.language_head.log_probs(hidden, labels).log_probs.detach()

    before = log_probs()
    batch.tokens[0, batch.cu_seqlens[1]] += 1
    changed = (log_probs() != before).numpy()
    ids = batch.token_fields[SAMPLE].ravel()
    assert changed[ids == 1].all()
    assert not changed[ids != 1].any()
