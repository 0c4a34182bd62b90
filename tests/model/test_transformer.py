import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bc2.model.attention import document_positions
from bc2.model.heads import normalize_rows
from bc2.model.model_config import ModelConfig
from bc2.model.rotary import rotary_table, rotate
from bc2.model.transformer import RMSNorm, Transformer


def config(**changes):
    shape = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_layers": 3,
        "num_heads": 3,
        "context_length": 64,
    }
    return ModelConfig(**{**shape, **changes})


def build(dtype=torch.float64, seed=0, **changes):
    model = Transformer(config(**changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.to(dtype)


def cu_seqlens(lengths):
    return torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)


def ids(count, seed=0):
    return torch.randint(61, (count,), generator=torch.Generator().manual_seed(seed))


BOTH = pytest.mark.parametrize("position", ["rope", "alibi"])


def test_parameters_have_the_released_names_and_shapes():
    shapes = {name: tuple(p.shape) for name, p in Transformer(config()).state_dict().items()}
    layers = {
        "self_attn.W_pack": (72, 24),
        "self_attn.o_proj": (24, 24),
        "mlp.gate_proj": (40, 24),
        "mlp.up_proj": (40, 24),
        "mlp.down_proj": (24, 40),
        "input_layernorm": (24,),
        "post_attention_layernorm": (24,),
    }
    expected = {
        "model.embed_tokens.weight": (61, 24),
        "model.norm.weight": (24,),
        "lm_head.weight": (61, 24),
    }
    for n in range(3):
        expected |= {f"model.layers.{n}.{name}.weight": s for name, s in layers.items()}
    assert shapes == expected


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32},
        {"hidden_size": 384, "intermediate_size": 1152, "num_layers": 6, "num_heads": 6},
        {"hidden_size": 2880, "intermediate_size": 8640, "num_layers": 28, "num_heads": 20},
    ],
)
def test_the_meta_device_has_as_many_parameters_as_the_closed_form(shape):
    made = ModelConfig(vocab_size=125_696, **shape)
    with torch.device("meta"):
        model = Transformer(made)
    model.init_weights(torch.Generator())  # draws nothing
    assert sum(p.numel() for p in model.parameters()) == made.num_params()
    inside = sum(
        p.numel()
        for name, p in model.named_parameters()
        if name not in ("model.embed_tokens.weight", "lm_head.weight")
    )
    assert inside == made.num_params_non_embedding()


def test_initial_weights_depend_on_the_seed_alone():
    one, again, other = build(torch.float32), build(torch.float32), build(torch.float32, seed=1)
    rounded = Transformer(config()).to(torch.bfloat16)
    rounded.init_weights(torch.Generator().manual_seed(0))
    torch.manual_seed(123)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight.bfloat16(), rounded.state_dict()[name])
        assert weight.dim() == 1 or not torch.equal(weight, other.state_dict()[name])


def test_initial_weights_have_the_stated_distributions():
    model = build(torch.float32, vocab_size=4000, hidden_size=192, num_layers=1)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert (weight == 1).all()
        elif name == "lm_head.weight":
            assert weight.abs().max() <= 192**-0.5
            assert weight.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=0.01)
        else:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(weight.mean().item()) < 0.001
    plain = build(torch.float32, vocab_size=4000, hidden_size=192, norm_head=False)
    assert plain.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.01)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build()
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    position=st.sampled_from(["rope", "alibi"]),
)
def test_packed_documents_are_separate_documents(lengths, position):
    model = build(position=position)
    tokens = ids(sum(lengths))
    model(tokens, cu_seqlens(lengths), max(lengths)).square().sum().backward()
    packed = model(tokens, cu_seqlens(lengths), max(lengths))
    packed_grads = [p.grad for p in model.parameters() if p.grad is not None]
    for p in model.parameters():
        p.grad = None
    apart = [model(part, cu_seqlens([len(part)]), len(part)) for part in tokens.split(lengths)]
    torch.cat(apart).square().sum().backward()
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-11, atol=1e-11)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    torch.testing.assert_close(packed_grads, grads, rtol=1e-9, atol=1e-10)


@BOTH
def test_a_later_token_changes_nothing_earlier(position):
    model = build(position=position)
    tokens = ids(20)
    changed = tokens.clone()
    changed[13] = (changed[13] + 1) % 61
    one, other = (model(t, cu_seqlens([9, 11]), 11) for t in (tokens, changed))
    assert torch.equal(one[:13], other[:13])
    assert not torch.equal(one[13], other[13])
    assert not torch.equal(one[19], other[19])


def test_positions_start_again_in_each_document():
    found = document_positions(cu_seqlens([3, 1, 0, 4]), 8)
    assert found.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    behind = document_positions(cu_seqlens([2, 1]), 3, torch.tensor([7, 5000]))
    assert behind.tolist() == [7, 8, 5000]


def test_rotary_angles_are_distinct_and_right_at_any_position():
    positions = torch.arange(0, 20_000)
    cos, sin = rotary_table(positions, 8, 10000.0)
    assert cos.dtype == sin.dtype == torch.float32
    frequency = torch.tensor([10000.0 ** -(2 * c / 8) for c in range(4)], dtype=torch.float64)
    angle = positions.double()[:, None] * frequency
    # An fp32 angle of up to 20,000 is within half a unit in its last place, 2^-10.
    assert (cos[:, 0, :4] - angle.cos()).abs().max() < 2**-9
    assert (sin[:, 0, 4:] - angle.sin()).abs().max() < 2**-9
    # The fastest channel turns by exactly the position: exact in fp32, not in bf16.
    assert torch.equal(sin[:, 0, 4], positions.float().sin())
    assert (sin[1:] != sin[:-1]).any(-1).all()


def test_rotation_by_the_definition():
    x = torch.randn(5, 3, 6, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 300, 4097])
    turned = rotate(x, *rotary_table(positions, 6, 100.0))
    for t, p in enumerate(positions.tolist()):
        for c in range(3):
            angle = p * 100.0 ** (-2 * c / 6)
            a, b = x[t, ..., c], x[t, ..., c + 3]
            one = a * math.cos(angle) - b * math.sin(angle)
            two = b * math.cos(angle) + a * math.sin(angle)
            # The angles are fp32: half a unit in the last place of up to p radians, twice.
            within = {"rtol": 0, "atol": (p + 1) * 2**-22}
            torch.testing.assert_close(turned[t, ..., c], one, **within)
            torch.testing.assert_close(turned[t, ..., c + 3], two, **within)


def test_rotation_keeps_bf16_positions_apart():
    x = torch.randn(1, 1, 8).bfloat16().expand(2, 1, 8)
    one, two = rotate(x, *rotary_table(torch.tensor([3000, 3001]), 8, 10000.0))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rms_norm_is_the_definition(dtype):
    norm = RMSNorm(50, 1e-6)
    norm.weight.data = torch.rand(50)
    norm = norm.to(dtype)
    x = (torch.randn(7, 50) * 300).to(dtype)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    found = norm(x)
    assert found.dtype == dtype
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 2 * torch.finfo(dtype).eps


@settings(max_examples=20, deadline=None)
@given(power=st.integers(-20, 20))
def test_norm_head_does_not_see_the_scale_of_its_rows(power):
    model = build()
    hidden = torch.randn(4, 24, dtype=torch.float64)
    before = model.logits(hidden)
    with torch.no_grad():
        model.lm_head.weight[::2] *= 2.0**power
    torch.testing.assert_close(model.logits(hidden), before, rtol=1e-12, atol=1e-12)
    assert before.abs().max() <= hidden.norm(dim=1).max()


def test_norm_head_is_the_cosine_times_the_length():
    model = build()
    hidden = torch.randn(4, 24, dtype=torch.float64)
    rows = model.lm_head.weight
    expected = torch.stack([hidden @ row / row.norm() for row in rows], dim=1)
    torch.testing.assert_close(model.logits(hidden), expected, rtol=1e-12, atol=1e-12)


def test_rows_of_bf16_are_normalized_in_fp32():
    weight = torch.randn(20, 300).bfloat16()
    expected = (weight.double() / weight.double().norm(dim=1, keepdim=True)).bfloat16()
    # A value that is exact to fp32, rounded to bf16 once: at most one unit in the last place off.
    assert (normalize_rows(weight) != expected).double().mean() < 0.001


def test_untied_head_is_used_as_it_is_without_norm_head():
    model = build(norm_head=False)
    assert model.head_weight() is model.lm_head.weight


@BOTH
def test_bf16_is_close_to_fp64(position):
    exact, rounded = build(position=position), build(torch.bfloat16, position=position)
    tokens = ids(40)
    expected = exact.logits(exact(tokens, cu_seqlens([25, 15]), 25))
    found = rounded.logits(rounded(tokens, cu_seqlens([25, 15]), 25))
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() / expected.norm() < 0.03
