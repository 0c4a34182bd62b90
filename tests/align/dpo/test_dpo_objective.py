"""DPO, IPO and the rest: packed, against each answer alone, by formulas without packing."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pairs import drawn_pairs, packed_pairs
from torch import Tensor

from bc2.align.dpo.dpo_config import DpoConfig
from bc2.align.dpo.dpo_objective import REFERENCE, PreferredAnswers, answer_log_probs
from bc2.align.samples.packed_batch import make_batch
from bc2.align.samples.sample import Sample
from bc2.data.loader import IGNORED
from bc2.model.lora import add_lora
from bc2.model.lora_config import LoraConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Linear, Transformer

V, LENGTH = 64, 96
LOSSES = ("dpo", "ipo", "length_normalised")


def model_of(seed: int = 0, **changes: Any) -> Transformer:
    settings = {
        "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2,
        "num_heads": 4, "context_length": 128,
    }  # fmt: skip
    model = Transformer(ModelConfig(**(settings | changes)))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.double()


def config_of(**changes: Any) -> DpoConfig:
    named = {"init": "x", "length": "1 steps", "batch_tokens": LENGTH, "micro_batch": 1}
    return DpoConfig(**named, sequence_length=LENGTH, **changes)


def log_prob_alone(model: Transformer, sample: Sample) -> tuple[Tensor, int]:
    """The log-probability of one answer, by the logits of all tokens."""
    tokens = torch.from_numpy(sample.tokens.astype(np.int64))
    hidden = model(tokens, torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
    log_probs = torch.log_softmax(model.language_head.logits(hidden), dim=-1)
    places = np.flatnonzero(sample.labels != IGNORED)
    total = sum((log_probs[at, int(sample.labels[at])] for at in places), torch.zeros(()).double())
    return total, len(places)


def naive_loss(
    model: Transformer, pairs: list[tuple[Sample, Sample]], reference: Any, config: DpoConfig
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for (chosen, rejected), (ref_w, ref_l) in zip(pairs, reference, strict=True):
        (w, n_w), (x, n_l) = log_prob_alone(model, chosen), log_prob_alone(model, rejected)
        ratios = [w - ref_w, x - ref_l]
        if config.loss == "length_normalised":
            ratios = [ratios[0] / n_w, ratios[1] / n_l]
        h = ratios[0] - ratios[1]
        if config.loss == "ipo":
            total = total + (h - 1 / (2 * config.beta)) ** 2
        else:
            right, wrong = torch.sigmoid(config.beta * h), torch.sigmoid(-config.beta * h)
            e = config.label_smoothing
            total = total - (1 - e) * torch.log(right) - e * torch.log(wrong)
        total = total - config.sft_weight * w / n_w
    return total


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 8), longest=st.integers(1, 20), seed=st.integers(0, 99),
    micro=st.integers(1, 3), loss=st.sampled_from(LOSSES), sft=st.sampled_from([0.0, 0.7]),
    smoothing=st.sampled_from([0.0, 0.2]),
)  # fmt: skip
def test_packed_pairs_are_each_answer_alone(
    count: int, longest: int, seed: int, micro: int, loss: str, sft: float, smoothing: float
) -> None:
    pairs, model = drawn_pairs(count, longest, V, seed=seed), model_of(seed)
    reference = np.random.default_rng(seed).normal(-20, 4, (count, 2))
    config = config_of(
        loss=loss, beta=0.3, sft_weight=sft, label_smoothing=0.0 if loss == "ipo" else smoothing
    )
    rows = packed_pairs(pairs, LENGTH, ends=False, fields={REFERENCE: reference}, seed=seed)
    other = copy.deepcopy(model)
    expected = naive_loss(other, pairs, reference, config)
    expected.backward()
    found = 0.0
    numbers = range(rows.first_row(1))
    for at in range(0, len(numbers), micro):
        made = PreferredAnswers(config)(model, rows.batch(numbers[at : at + micro]))
        made.total.backward()
        found += float(made.total)
    assert found == pytest.approx(float(expected), rel=1e-10)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_log_probabilities_and_lengths_are_those_of_the_answers() -> None:
    pairs, model = drawn_pairs(5, 15, V), model_of()
    rows = packed_pairs(pairs, LENGTH, ends=False)
    units = np.concatenate([rows.units(number) for number in range(rows.first_row(1))])
    batch = rows.batch(range(rows.first_row(1)))
    found = answer_log_probs(model, batch).view(-1, 2, 2)
    for unit, both in zip(units, found, strict=True):
        for sample, (log_prob, length) in zip(pairs[unit], both.tolist(), strict=True):
            expected, count = log_prob_alone(model, sample)
            assert log_prob == pytest.approx(float(expected), rel=1e-12)
            assert length == count


def test_adapters_switched_off_are_the_reference() -> None:
    lora = LoraConfig(rank=4)
    base, adapted = model_of(), model_of()
    add_lora(lora)(adapted)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if ".adapter." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).double() * 0.1
    pairs = drawn_pairs(4, 12, V)
    rows = packed_pairs(pairs, LENGTH, ends=False)
    batch = rows.batch(range(rows.first_row(1)))
    stored = answer_log_probs(base, batch)[:, 0].detach().numpy()
    with_field = rows.batch(range(rows.first_row(1)))
    config = config_of(lora=lora)
    off = PreferredAnswers(config)(adapted, batch)
    object.__setattr__(with_field, "sample_fields", {REFERENCE: stored})
    on = PreferredAnswers(config)(adapted, with_field)
    assert float(off.total) == pytest.approx(float(on.total), rel=1e-12)
    assert float(off.total) != pytest.approx(len(pairs) * math.log(2), rel=1e-3)
    linears = [module for module in adapted.modules() if isinstance(module, Linear)]
    assert all(module.adapter is not None for module in linears)


def test_a_policy_that_is_its_reference_loses_ln_2_and_half_of_its_pairs() -> None:
    model, pairs = model_of(), drawn_pairs(6, 12, V)
    rows = packed_pairs(pairs, LENGTH, ends=False)
    batch = rows.batch(range(rows.first_row(1)))
    own = answer_log_probs(model, batch)[:, 0].detach().numpy()
    object.__setattr__(batch, "sample_fields", {REFERENCE: own})
    found = PreferredAnswers(config_of())(model, batch)
    assert float(found.total) == pytest.approx(6 * math.log(2))
    assert float(found.sums["accuracy"]) == 3.0


def test_label_smoothing_has_no_meaning_for_ipo() -> None:
    with pytest.raises(ValueError, match="no meaning for the loss ipo"):
        config_of(loss="ipo", label_smoothing=0.1)


def test_a_long_answer_in_bf16_is_the_one_in_fp32_but_for_rounding() -> None:
    length = 2048
    narrow = model_of(vocab_size=512, context_length=length).bfloat16()
    wide = Transformer(narrow.config)
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    tokens = np.random.default_rng(0).integers(0, 512, length + 1).astype(np.int32)
    whole = Sample(tokens[:-1], tokens[1:], np.ones(length, np.float32))
    batch = make_batch([[whole]], length, 0)
    with torch.no_grad():
        found, expected = (float(answer_log_probs(one, batch)[0, 0]) for one in (narrow, wide))
        hidden = wide(
            torch.from_numpy(tokens[:-1].astype(np.int64)),
            torch.tensor([0, length], dtype=torch.int32), length,
        )  # fmt: skip
        labels = torch.from_numpy(tokens[1:].astype(np.int64))
        each = wide.language_head.log_probs(hidden, labels).log_probs
    assert abs(found - expected) / length < 5e-4
    assert each.dtype == torch.float32
    assert expected == pytest.approx(math.fsum(each.tolist()), rel=1e-14)  # summed in fp64
