"""The model that lies beside exported weights, as transformers runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import baichuan_reference
import pytest
import torch
import transformers
from exported import our_greedy, our_logits, their_logits, write
from remote_code import load, load_tokenizer
from small_checkpoints import SMALL, checkpoint, drawn
from torch import Tensor

from bc2.convert.exporting.baichuan import plan_baichuan
from bc2.convert.importing.import_model import import_model
from bc2.model.model_config import ModelConfig
from bc2.model.store import load_config
from bc2.registry import Artifact, Registry

pytestmark = pytest.mark.usefixtures("modules")

KINDS = {
    "rope": {},
    "alibi": {"position": "alibi"},
    "grouped": {"position": "alibi", "num_heads": 6, "num_kv_heads": 2, "head_dim": 12},
    "plain": {"norm_head": False, "num_kv_heads": 1},
}

Made = Callable[[str], tuple[Artifact, Path]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A checkpoint of a kind, and its folder; made once."""
    known: dict[str, tuple[Artifact, Path]] = {}

    def get(kind: str) -> tuple[Artifact, Path]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            artifact = checkpoint(
                Registry.open(folder / "home"), ModelConfig(**{**SMALL, **KINDS[kind]})
            )
            write(artifact, folder / "out", plan_baichuan)
            known[kind] = artifact, folder / "out"
        return known[kind]

    return get


def ids_of(count: int) -> list[int]:
    return torch.randint(640, (count,), generator=torch.Generator().manual_seed(count)).tolist()


def greedy(model: Any, ids: Tensor, mask: Tensor, count: int, **settings: Any) -> Tensor:
    found: Tensor = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=0,
        eos_token_id=640, **settings,
    )  # fmt: skip
    return found[:, ids.shape[1] :]


@pytest.mark.parametrize("heads", [5, 6, 7, 8, 9])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_any_number_of_heads(position: str, heads: int, tmp_path: Path) -> None:
    """Slopes of no power of two are those of the release, whatever the width and the depth."""
    config = ModelConfig(
        **{**SMALL, "num_heads": heads, "hidden_size": 8 * heads, "position": position,
           "num_layers": 1}
    )  # fmt: skip
    write(checkpoint(Registry.open(tmp_path / "home"), config), tmp_path / "out", plan_baichuan)
    model = load(tmp_path / "out")
    released = {
        "num_hidden_layers": 1, "rms_norm_eps": config.norm_eps, "num_attention_heads": heads,
        "hidden_size": 8 * heads, "z_loss_weight": 0,
        **({"max_position_embeddings": 256} if position == "rope" else {}),
    }  # fmt: skip
    ids = ids_of(90)
    expected = baichuan_reference.logits(released, drawn(config), ids).float()
    torch.testing.assert_close(their_logits(model, ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_greedy_tokens_are_ours(made: Made, kind: str) -> None:
    artifact, folder = made(kind)
    model, ids = load(folder), ids_of(70)
    torch.testing.assert_close(
        their_logits(model, ids), our_logits(artifact, ids), rtol=0, atol=1e-4
    )
    prompt = torch.tensor([ids[:9]])
    said = greedy(model, prompt, torch.ones_like(prompt), 64)[0].tolist()
    assert said == our_greedy(artifact, ids[:9], 64)
    assert len(set(said)) > 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_nothing(made: Made, kind: str, side: str) -> None:
    model, lengths = load(made(kind)[1]), (20, 7, 1)
    ids, mask = torch.full((3, 20), 5), torch.zeros(3, 20, dtype=torch.long)
    places = [slice(20 - n, 20) if side == "left" else slice(0, n) for n in lengths]
    for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
        ids[row, place], mask[row, place] = torch.tensor(ids_of(length)), 1
    found = model(ids, attention_mask=mask).logits
    assert found.isfinite().all()
    for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
        alone = their_logits(model, ids_of(length))
        torch.testing.assert_close(found[row, place], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_each_prompt_says_alone(made: Made, kind: str) -> None:
    model, lengths = load(made(kind)[1]), (12, 5)
    ids, mask = torch.full((2, 12), 5), torch.zeros(2, 12, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 12 - length :], mask[row, 12 - length :] = torch.tensor(ids_of(length)), 1
    found = greedy(model, ids, mask, 24)
    for row, length in enumerate(lengths):
        prompt = torch.tensor([ids_of(length)])
        alone = greedy(model, prompt, torch.ones_like(prompt), 24)
        assert found[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("kind", ["rope", "grouped"])
def test_each_kind_of_cache_says_the_same(made: Made, kind: str) -> None:
    model, prompt = load(made(kind)[1]), torch.tensor([ids_of(10)])
    mask = torch.ones_like(prompt)
    whole = greedy(model, prompt, mask, 24)
    for settings in ({"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 1}):
        assert torch.equal(greedy(model, prompt, mask, 24, **settings), whole), settings
    beams = greedy(model, prompt, mask, 8, num_beams=3)
    assert torch.equal(greedy(model, prompt, mask, 8, num_beams=3, use_cache=False), beams)


@pytest.mark.parametrize("kind", ["rope", "alibi"])
@torch.no_grad()
def test_a_text_in_pieces(made: Made, kind: str) -> None:
    """Keys of the cache, by the newer and the older name of its argument, and positions after."""
    model, ids = load(made(kind)[1]), torch.tensor([ids_of(30)])
    whole = model(ids).logits
    for name in ("cache", "past_key_values"):
        held = transformers.DynamicCache()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            parts = [
                model(ids[:, at : at + 10], use_cache=True, **{name: held}).logits
                for at in range(0, 30, 10)
            ]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=2e-5)
    last = model(ids, logits_to_keep=3).logits
    torch.testing.assert_close(last, whole[:, -3:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_in_sixteen_bits_and_by_a_map_of_devices(made: Made) -> None:
    for kind in ("rope", "alibi"):
        model = load(made(kind)[1], dtype=torch.bfloat16, device_map="cpu")
        ids = torch.tensor([ids_of(40)])
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        found = model(ids, attention_mask=mask).logits
        assert found.dtype == torch.bfloat16
        wide = load(made(kind)[1])(ids, attention_mask=mask).logits
        assert (found[0, 3:] - wide[0, 3:]).abs().mean() < 0.1
        assert greedy(model, ids, mask, 5).shape == (1, 5)


@pytest.mark.parametrize("length", [1e-5, 2e4])
@torch.no_grad()
def test_raw_rows_of_any_length_in_fp16(made: Made, length: float) -> None:
    model, ids = load(made("rope")[1], dtype=torch.float16), torch.tensor([ids_of(40)])
    expected = model(ids).logits.float()
    model.lm_head.weight.copy_(model.lm_head.weight.float() * length)
    torch.testing.assert_close(model(ids).logits.float(), expected, rtol=0, atol=0.05)


def test_a_step_of_training_keeps_the_raw_rows(made: Made) -> None:
    model = load(made("rope")[1]).train()
    before = model.lm_head.weight.detach().clone()
    ids = torch.tensor([ids_of(40)])
    loss = model(ids, labels=ids).loss
    expected = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert torch.equal(model.lm_head.weight, before)
    # A unit row does not change along itself.
    along = (model.lm_head.weight.grad * before).sum(1).abs().max()
    assert along < 1e-6 < model.lm_head.weight.grad.abs().max()
    assert all(weight.grad is not None for weight in model.parameters())


def test_checkpointed_layers_have_the_same_gradient(made: Made) -> None:
    ids, found = torch.tensor([ids_of(30)]), []
    for checkpoints in (False, True):
        model = load(made("alibi")[1]).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, labels=ids).loss.backward()
        found.append(model.model.layers[0].self_attn.W_pack.weight.grad)
    torch.testing.assert_close(*found)


def test_the_largest_logit_may_cost(made: Made) -> None:
    model, ids = load(made("rope")[1]), torch.tensor([ids_of(20)])
    plain = model(ids, labels=ids)
    model.config.z_loss_weight = 0.5
    largest = plain.logits[0, :-1].amax(-1)
    found = model(ids, labels=ids).loss
    torch.testing.assert_close(found, plain.loss + 0.5 * largest.square().mean())


def test_more_rows_keep_the_norm_head(made: Made) -> None:
    model, ids = load(made("rope")[1]), torch.tensor([ids_of(20)])
    before = model(ids).logits
    model.resize_token_embeddings(660)
    found = model(ids).logits
    assert found.shape[-1] == 660
    torch.testing.assert_close(found[..., :640], before)


def test_hidden_states_and_tuples(made: Made) -> None:
    model, ids = load(made("rope")[1]), torch.tensor([ids_of(20)])
    found = model(ids, output_hidden_states=True)
    assert [state.shape for state in found.hidden_states] == [(1, 20, 64)] * 3
    logits, *_ = model(ids, return_dict=False)
    torch.testing.assert_close(logits, found.logits)
    torch.testing.assert_close(model.lm_head(found.hidden_states[-1]), found.logits)
    embedded = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, found.logits)
    with pytest.raises(ValueError, match="attentions"):
        model(ids, output_attentions=True)


def test_a_new_model_is_drawn_as_ours(made: Made) -> None:
    config = transformers.AutoConfig.from_pretrained(made("rope")[1], trust_remote_code=True)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    bound = 1 / 8
    assert bound * 0.9 < model.lm_head.weight.abs().max() <= bound
    assert abs(model.model.layers[0].mlp.up_proj.weight.std() - 0.02) < 0.002
    assert (model.model.norm.weight == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_transformers_saves_comes_back(made: Made, kind: str, tmp_path: Path) -> None:
    """Such as a model that was trained there."""
    artifact, folder = made(kind)
    model, ids = load(folder), ids_of(20)
    model.save_pretrained(tmp_path / "again")
    load_tokenizer(folder).save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(their_logits(again, ids), their_logits(model, ids))
    here = import_model(Registry.open(tmp_path / "home"), tmp_path / "again")
    assert load_config(here.path) == load_config(artifact.path)
    assert torch.equal(our_logits(here, ids), our_logits(artifact, ids))


@pytest.mark.parametrize(
    "wrong",
    [{"position_embedding": "sine"}, {"hidden_act": "gelu"}, {"tie_word_embeddings": True}],
)
def test_a_config_of_another_model(made: Made, wrong: dict[str, Any]) -> None:
    config = transformers.AutoConfig.from_pretrained(made("rope")[1], trust_remote_code=True)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        type(config)(**wrong)
