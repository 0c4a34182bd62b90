import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bc2.errors import DataError, IntegrityError
from bc2.model.model_config import ModelConfig
from bc2.model.store import CONFIG, WEIGHTS, load_config, load_model, save_model
from bc2.model.transformer import Transformer

SHAPE = ModelConfig(
    vocab_size=13, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2, position="alibi"
)


@pytest.fixture
def model():
    made = Transformer(SHAPE)
    made.init_weights(torch.Generator().manual_seed(0))
    return made


@pytest.fixture
def folder(tmp_path, model):
    save_model(tmp_path, SHAPE, model.state_dict())
    return tmp_path


def test_a_model_comes_back_as_it_was(folder, model):
    loaded = load_model(folder)
    assert loaded.config == SHAPE
    state = loaded.state_dict()
    assert list(state) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)
    assert all(p.requires_grad for p in loaded.parameters())
    tokens, cu_seqlens = torch.arange(5), torch.tensor([0, 5], dtype=torch.int32)
    assert torch.equal(loaded(tokens, cu_seqlens, 5), model(tokens, cu_seqlens, 5))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("asked", [None, torch.bfloat16, torch.float64])
def test_dtype_is_the_stored_or_the_asked_one(tmp_path, model, stored, asked):
    save_model(tmp_path, SHAPE, model.to(stored).state_dict())
    loaded = load_model(tmp_path, dtype=asked)
    assert {p.dtype for p in loaded.parameters()} == {asked or stored}


def test_saving_is_deterministic(tmp_path, model):
    names = ("a", "b")
    for name in names:
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, SHAPE, model.state_dict())
    one, two = ([(tmp_path / n / f).read_bytes() for f in (WEIGHTS, CONFIG)] for n in names)
    assert one == two


def test_refuses_to_save_what_does_not_fit(tmp_path, model):
    state = dict(model.state_dict())
    state["lm_head.weight"] = torch.zeros(12, 8)
    with pytest.raises(IntegrityError, match=r"lm_head.weight is \[12, 8\], not \[13, 8\]"):
        save_model(tmp_path, SHAPE, state)
    assert list(tmp_path.iterdir()) == []


def test_names_missing_and_unknown_tensors(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.1.mlp.up.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(IntegrityError) as info:
        load_model(folder)
    assert "model.layers.1.mlp.up_proj.weight is missing" in info.value.what
    assert "model.layers.1.mlp.up.weight is unknown (like model.layers.1.mlp.up_proj" in str(
        info.value
    )
    assert info.value.where == str(folder / WEIGHTS)
    assert info.value.exit_code == 5


def test_names_a_wrong_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = torch.ones(9)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(IntegrityError, match=r"model.norm.weight is \[9\], not \[8\]"):
        load_model(folder)


def test_several_dtypes_need_a_choice(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(IntegrityError, match=r"several dtypes: torch.bfloat16, torch.float32"):
        load_model(folder)
    assert load_model(folder, dtype=torch.float32).lm_head.weight.dtype == torch.float32


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(DataError) as info:
        load_model(folder)
    assert info.value.where == str(folder / name)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_cut_file_is_an_error(folder, kept):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(IntegrityError, match="not a complete safetensors file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "JSON"), ("{}", "vocab_size"), (None, "num_heads")],
)
def test_a_broken_configuration_is_an_error(folder, text, message):
    if text is None:
        data = json.loads((folder / CONFIG).read_text())
        text = json.dumps({**data, "num_heads": "two"})
    (folder / CONFIG).write_text(text)
    with pytest.raises(IntegrityError, match=message):
        load_config(folder)
