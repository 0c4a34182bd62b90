import pytest
import torch

from bc2.generate.near_ties import canonical_hidden, settle, tolerance, wider
from bc2.model.cache import KVCache
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


def last_hidden(model, tokens, cached):
    """Last hidden states [B, D] of one batch; with a cache, the last token is read by itself."""
    count, length = tokens.shape
    cuts = [length - 1, 1] if cached else [length]
    device = torch.device("cpu")
    cache = KVCache(model.config, count, length, model.lm_head.weight.dtype, device)
    for part in tokens.split(cuts, dim=1):
        size = part.shape[1]
        cu_seqlens = torch.arange(0, count * size + 1, size, dtype=torch.int32)
        hidden = model(part.flatten(), cu_seqlens, size, cache if cached else None)
    return hidden.view(count, -1, hidden.shape[-1])[:, -1]


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
    alone = torch.cat([last_hidden(model, one[None], cached=False) for one in tokens])
    reference = model.logits(alone).double()
    max_seqlen = model.head_weight().double().norm(dim=1).max().item()
    allowed = tolerance(model, alone, max_seqlen, reference.amax(-1))
    for cached in (False, True):
        other = model.logits(last_hidden(model, tokens, cached)).double()
        moved = (other - reference).abs().amax(-1)
        assert (moved < allowed / 4).all(), (moved / allowed).max()


@pytest.mark.parametrize("position", ["rope", "alibi"])
@torch.no_grad()
def test_the_canonical_pass_is_the_model_in_a_wider_dtype(position):
    model = build(torch.float32, 5, position)
    exact = build(torch.float32, 5, position).double()
    tokens = texts(1)[0]
    hidden = canonical_hidden(model, tokens)
    expected = exact(tokens, torch.tensor([0, 60], dtype=torch.int32), 60)[-1]
    assert hidden.dtype == torch.float64
    torch.testing.assert_close(hidden, expected, rtol=1e-10, atol=1e-12)
    assert model.lm_head.weight.dtype == torch.float32
    assert next(model.model.layers.parameters()).dtype == torch.float32


def test_each_dtype_is_settled_in_a_wider_one():
    assert wider(torch.bfloat16) == torch.float32
    assert wider(torch.float32) == torch.float64
    assert wider(torch.float64) == torch.float64


@pytest.mark.parametrize("norm_head", [True, False])
@torch.no_grad()
def test_settling_takes_the_larger_of_two_and_the_lower_of_equals(norm_head):
    model = build(torch.bfloat16, 5, norm_head=norm_head)
    tokens = texts(1)[0]
    logits = model.double().logits(canonical_hidden(model, tokens)[None])[0]
    model = model.bfloat16()
    order = logits.argsort(descending=True)[:6].tolist()
    assert settle(model, tokens, sorted(order)) == order[0]
    assert settle(model, tokens, sorted(order[3:])) == order[3]
    assert settle(model, tokens, [order[4]]) == order[4]
    model.lm_head.weight[200] = model.lm_head.weight[100]
    assert settle(model, tokens, [100, 200]) == 100
