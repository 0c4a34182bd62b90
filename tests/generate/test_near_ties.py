import pytest
import torch

from bc2.generate.cache.memory import Memory
from bc2.generate.cache.paged_attention import PagedStep
from bc2.generate.cache.segment import Segment
from bc2.generate.near_ties import canonical_choice, canonical_hidden, tolerance, wide_logits
from bc2.generate.runner import ModelRunner
from bc2.generate.sampling.token_groups import Draw
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer


def build(dtype, gain, position="rope", layers=2, size=64, norm_head=True):
    config = ModelConfig(
        vocab_size=211,
        hidden_size=size,
        intermediate_size=2 * size,
        num_layers=layers,
        num_heads=4,
        position=position,
        norm_head=norm_head,
        context_length=128,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(layers))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(gain if weight.dim() == 2 else 1)
    return model.to(dtype)


def texts(count, length=60):
    return torch.randint(211, (count, length), generator=torch.Generator().manual_seed(count))


def last_hidden(model, tokens):
    """Last hidden states [B, D] of one batch."""
    count, length = tokens.shape
    cu_seqlens = torch.arange(0, count * length + 1, length, dtype=torch.int32)
    hidden = model(tokens.flatten(), cu_seqlens, length)
    return hidden.view(count, -1, hidden.shape[-1])[:, -1]


def from_cache(model, tokens, cuts, together):
    """The same, read in pieces of `cuts` tokens over a cache, `together` sequences at a time."""
    count, length = tokens.shape
    size, dtype = 16, model.lm_head.weight.dtype
    each = -(-length // size)
    memory = Memory.of(model.config, 4, count * each, size, dtype, torch.device("cpu"))
    blocks = [memory.take(each) for _ in range(count)]
    found = []
    for first in range(0, count, together):
        rows = range(first, min(first + together, count))
        read = 0
        for cut in cuts:
            step = PagedStep(memory.cache, [Segment(read, cut, blocks[row]) for row in rows])
            ids = tokens[rows.start : rows.stop, read : read + cut].flatten()
            hidden = model(ids, step.cu_seqlens, step.max_seqlen, step)
            read += cut
        found.append(hidden.view(len(rows), -1, hidden.shape[-1])[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("norm_head", [True, False])
@pytest.mark.parametrize(
    ("gain", "layers", "size"), [(1, 2, 64), (5, 2, 64), (3, 12, 64), (2, 4, 256)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_kernels_differ_by_much_less_than_the_tolerance(
    dtype, gain, layers, size, norm_head, position
):
    """Batch shapes and the cache move a logit by less than a quarter of the tolerance.

    Less than half would be enough for greedy choice, in which both of two logits may move.
    """
    model = build(dtype, gain, position, layers, size, norm_head)
    tokens = texts(16)
    alone = torch.cat([last_hidden(model, one[None]) for one in tokens])
    reference = model.logits(alone).double()
    max_seqlen = model.head_weight().double().norm(dim=1).max().item()
    allowed = tolerance(layers, alone, max_seqlen, reference.amax(-1))
    others = [
        last_hidden(model, tokens),
        from_cache(model, tokens, [59, 1], 16),
        from_cache(model, tokens, [20, 39, 1], 5),
        from_cache(model, tokens, [7, 53], 16),
        from_cache(model, tokens, [30, *[1] * 30], 16),
    ]
    for other in others:
        moved = (model.logits(other).double() - reference).abs().amax(-1)
        assert (moved < allowed / 4).all(), (moved / allowed).max()


@pytest.mark.parametrize("position", ["rope", "alibi"])
@torch.no_grad()
def test_the_canonical_pass_is_the_model_in_a_wider_dtype(position):
    model = build(torch.float32, 5, position)
    exact = build(torch.float32, 5, position).double()
    tokens = texts(1)[0]
    hidden = canonical_hidden(ModelRunner(model), tokens)
    expected = exact(tokens, torch.tensor([0, 60], dtype=torch.int32), 60)[-1]
    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden, expected, rtol=1e-10, atol=1e-12)
    assert model.lm_head.weight.dtype == torch.float32
    assert next(model.model.layers.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm_head", [True, False])
@torch.no_grad()
def test_the_canonical_choice_is_the_largest_and_the_lowest_of_equals(norm_head, dtype):
    model = build(dtype, 5, norm_head=norm_head)
    runner, greedy = ModelRunner(model), Draw(SamplingConfig(temperature=0))
    tokens = texts(1)[0]
    best = int(canonical_choice(runner, tokens.tolist(), greedy).ids)
    logits = wide_logits(runner, canonical_hidden(runner, tokens))
    exact = build(dtype, 5, norm_head=norm_head).double()
    expected = exact.logits(exact(tokens, torch.tensor([0, 60], dtype=torch.int32), 60)[-1:])[0]
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert best == int(expected.argmax())
    for twin in (0, 210):
        model.lm_head.weight[twin] = model.lm_head.weight[best]
        assert int(canonical_choice(runner, tokens.tolist(), greedy).ids) == min(twin, best)
        model.lm_head.weight[twin] = 0.0
