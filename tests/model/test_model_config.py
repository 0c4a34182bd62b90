import math

import pytest
from pydantic import ValidationError

from bc2.model.model_config import ModelConfig
from bc2.model.store import expected_shapes

V = 125_696
SEVEN = {"hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32}
THIRTEEN = {
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "num_layers": 40,
    "num_heads": 40,
    "position": "alibi",
}

# Baichuan 2, section 2.6: hidden, FFN, layers, heads, and millions without the embeddings.
LADDER = [
    (384, 1152, 6, 6, "11.51"),
    (704, 2112, 8, 8, "51.56"),
    (832, 2496, 12, 8, "108.01"),
    (1216, 3648, 16, 8, "307.60"),
    (1792, 5376, 20, 14, "835.00"),
    (2240, 6720, 24, 14, "1565.60"),
    (2880, 8640, 28, 20, "3019.33"),
]


def test_counts_the_parameters_of_the_7b():
    config = ModelConfig(vocab_size=V, **SEVEN)
    assert config.num_params() == 7_505_973_248
    assert config.num_params_non_embedding() == 6_476_271_616
    assert config.head_size == 128


def test_counts_the_parameters_of_the_13b():
    config = ModelConfig(vocab_size=V, **THIRTEEN)
    assert config.num_params() == 13_896_668_160
    assert config.num_params_non_embedding() == 12_609_541_120


@pytest.mark.parametrize(("hidden", "ffn", "layers", "heads", "millions"), LADDER)
def test_counts_the_ladder_to_the_published_digits(hidden, ffn, layers, heads, millions):
    config = ModelConfig(
        vocab_size=V,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
    )
    assert f"{config.num_params_non_embedding() / 1e6:.2f}" == millions


def test_flops_follow_palm():
    config = ModelConfig(
        vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=3, num_heads=2
    )
    # 6 a matmul parameter: 3 layers of 4·4·4 + 3·4·8 and a head of 10·4; 12·L·D·S of attention.
    assert config.flops_per_token(5) == 6 * (3 * (64 + 96) + 40) + 12 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("head", "rows"), [({"head": "scalar"}, 1), ({"head": "classes", "num_classes": 5}, 5)]
)
def test_a_head_of_values_has_a_row_for_each(head, rows):
    language, other = ModelConfig(vocab_size=V, **SEVEN), ModelConfig(vocab_size=V, **SEVEN, **head)
    assert other.num_params_non_embedding() == language.num_params_non_embedding()
    assert other.num_params() == 7_505_973_248 - (V - rows) * 4096
    fewer = language.flops_per_token(4096) - other.flops_per_token(4096)
    assert fewer == 6 * (V - rows) * 4096


def scaled(**settings):
    return {"kind": "linear", "factor": 2.0, **settings}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "reward"}, "'language', 'scalar' or 'classes'"),
        ({"head": "classes"}, 'head = "classes" needs num_classes'),
        ({"head": "classes", "num_classes": 1}, "greater than or equal to 2"),
        ({"num_classes": 2}, 'num_classes is for head = "classes", not "language"'),
        ({"head": "scalar", "num_classes": 2}, 'for head = "classes", not "scalar"'),
        ({"num_heads": 3}, "hidden_size 4 is not divisible by num_heads 3"),
        ({"num_heads": 4}, "is odd"),
        ({"head_dim": 3}, "head_dim = 3 is odd"),
        ({"num_kv_heads": 3}, "num_heads 2 is not divisible by num_kv_heads 3"),
        ({"num_kv_heads": 0}, "greater than 0"),
        ({"rope_scaling": scaled(kind="dynamic")}, "'linear', 'llama3' or 'yarn'"),
        ({"rope_scaling": scaled(kind="llama3")}, '"llama3" needs original_context'),
        ({"rope_scaling": scaled(beta_fast=2.0)}, 'beta_fast is not for kind = "linear"'),
        (
            {"rope_scaling": scaled(kind="yarn", original_context=8, beta_slow=40.0)},
            "beta_slow must be less",
        ),
        ({"sliding_window": 4, "position": "alibi"}, 'sliding_window is for position = "rope"'),
        (
            {"rope_scaling": scaled(), "position": "alibi"},
            'rope_scaling is for position = "rope", not "alibi"',
        ),
        ({"num_layers": 0}, "greater than 0"),
        ({"position": "learned"}, "'rope' or 'alibi'"),
        ({"norm_eps": 0.0}, "greater than or equal to 0.0000"),
    ],
)
def test_refuses_impossible_shapes(change, message):
    shape = {
        "vocab_size": 10,
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    ModelConfig(**shape)
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**shape, **change})


def test_odd_head_size_is_fine_with_alibi():
    config = ModelConfig(
        vocab_size=10,
        hidden_size=6,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        position="alibi",
    )
    assert config.head_size == 3


#: Llama 3 8B, Qwen3 4B and others have such shapes.
SHAPES = [
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "head_dim": 10},
    {"head_dim": 2, "head": "scalar"},
    {"num_kv_heads": 2, "qkv_bias": True},
    {"tied": True, "head": "scalar"},
    {"num_kv_heads": 2, "head_dim": 8, "qk_norm": True},
]


@pytest.mark.parametrize("more", SHAPES, ids=str)
def test_counts_what_a_model_of_another_family_has(more):
    config = ModelConfig(
        vocab_size=20, hidden_size=24, intermediate_size=16, num_layers=3, num_heads=4, **more
    )
    sizes = {name: math.prod(shape) for name, shape in expected_shapes(config).items()}
    assert config.num_params() == sum(sizes.values())
    outer = [size for name, size in sizes.items() if "layers" not in name and "norm" not in name]
    assert config.num_params_non_embedding() == sum(sizes.values()) - sum(outer)
    norms = [size for name, size in sizes.items() if "norm" in name]
    assert config.num_norm_params() == sum(norms)
    products = [
        size for name, size in sizes.items()
        if name.endswith("weight") and "norm" not in name and "embed" not in name
    ]  # fmt: skip
    mixed = 12 * 3 * 4 * config.head_size * 7
    assert config.flops_per_token(7) == 6 * sum(products) + mixed


def test_llama_3_has_8_billion_parameters():
    config = ModelConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_layers=32,
        num_heads=32, num_kv_heads=8,
    )  # fmt: skip
    assert config.num_params() == 8_030_261_248


def test_what_follows_anyway_is_no_other_model():
    """An imported model says all of it, and is the model of a recipe that says nothing."""
    plain = ModelConfig(vocab_size=V, **SEVEN)
    said = ModelConfig(vocab_size=V, **SEVEN, num_kv_heads=32, head_dim=128)
    assert said == plain
    assert said.keyed() == plain.keyed()
    assert ModelConfig(vocab_size=V, **SEVEN, num_kv_heads=8, head_dim=64).keyed() == {
        **plain.keyed(), "num_kv_heads": 8, "head_dim": 64,
    }  # fmt: skip
