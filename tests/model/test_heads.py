"""Heads of values against the product written out, and a language head where there is none."""

import pytest
import torch

from bc2.generate.runner import ModelRunner
from bc2.model.heads import Head, ValueHead
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer

SCALAR = {"head": "scalar"}
CLASSES = {"head": "classes", "num_classes": 3}
EITHER = pytest.mark.parametrize("head", [SCALAR, CLASSES], ids=["scalar", "classes"])


def config(**changes):
    shape = {
        "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_layers": 2,
        "num_heads": 3, "context_length": 64,
    }  # fmt: skip
    return ModelConfig(**{**shape, **changes})


def build(seed=0, **changes):
    model = Transformer(config(**changes))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@EITHER
def test_names_and_shapes_are_those_of_transformers_classifiers(head):
    model = build(**head)
    names = dict(model.named_parameters())
    assert list(names)[-1] == "score.weight"
    assert "lm_head.weight" not in names
    assert tuple(names["score.weight"].shape) == (head.get("num_classes", 1), 24)
    assert isinstance(model.head, ValueHead)
    assert model.head.weight is names["score.weight"]
    assert sum(p.numel() for p in names.values()) == model.config.num_params()


@pytest.mark.parametrize("norm_head", [True, False])
@pytest.mark.parametrize("seed", [0, 7])
def test_language_models_are_drawn_as_ever(seed, norm_head):
    """Matrix after matrix in the model's order, the head last: written out, to the bit."""
    model, draw = build(seed, norm_head=norm_head), torch.Generator().manual_seed(seed)
    layer = [(72, 24), (24, 24), (40, 24), (40, 24), (24, 40)]
    drawn = [torch.empty(s).normal_(0.0, 0.02, generator=draw) for s in [(61, 24), *layer, *layer]]
    head, bound = torch.empty(61, 24), 24**-0.5
    if norm_head:
        head.uniform_(-bound, bound, generator=draw)
    else:
        head.normal_(0.0, 0.02, generator=draw)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    assert len(matrices) == len(drawn) + 1
    for found, expected in zip(matrices, [*drawn, head], strict=True):
        assert torch.equal(found, expected)


@EITHER
def test_models_of_a_seed_differ_in_their_heads_alone(head):
    language, other = build().state_dict(), build(**head).state_dict()
    assert language.keys() - other.keys() == {"lm_head.weight"}
    assert other.keys() - language.keys() == {"score.weight"}
    for name in language.keys() & other.keys():
        assert torch.equal(language[name], other[name]), name


def test_a_head_of_values_is_drawn_as_a_linear_layer():
    model = build(**CLASSES, hidden_size=3072, num_layers=1, initializer_range=0.03)
    weight = model.head.weight
    assert weight.std().item() == pytest.approx(0.03, rel=0.05)
    assert abs(weight.mean().item()) < 0.003


@EITHER
def test_values_and_gradients_are_those_of_the_product(head):
    model = build(**head).double()
    hidden = torch.randn(7, 24, dtype=torch.float64, requires_grad=True)
    found = model.values(hidden)
    expected = hidden @ model.head.weight.T
    assert found.shape == ((7,) if head is SCALAR else (7, 3))
    torch.testing.assert_close(found, expected.view_as(found))
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), (hidden, model.head.weight))
    theirs = torch.autograd.grad(
        (expected.view_as(found) * weights).sum(), (hidden, model.head.weight)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@EITHER
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32])
def test_values_of_bf16_hidden_states_are_not_rounded(head, weight):
    model = build(**head)
    model.head.to(weight)
    hidden = torch.randn(50, 24).bfloat16().requires_grad_()
    found = model.values(hidden)
    assert found.dtype == torch.float32
    expected = hidden.double() @ model.head.weight.double().T
    torch.testing.assert_close(found.double(), expected.view_as(found), rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert model.head.weight.grad.dtype == weight


def test_a_model_has_the_head_that_it_was_given():
    language, scalar = build(), build(**SCALAR)
    hidden = torch.zeros(2, 24)
    assert isinstance(language.head, Head)
    assert language.head is language.language_head is language.lm_head
    with pytest.raises(ValueError, match="a language head has logits, not values"):
        language.values(hidden)
    for wants_a_token in (scalar.logits, lambda _: scalar.head_weight()):
        with pytest.raises(ValueError, match=r'scalar head.*model.head = "language"'):
            wants_a_token(hidden)
    with pytest.raises(ValueError, match="has no next token"):
        ModelRunner(scalar)
    assert scalar.device == language.device == torch.device("cpu")
