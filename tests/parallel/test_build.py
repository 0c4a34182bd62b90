"""Initial weights are those that one device draws, whatever a rank reads of them.

Those of a checkpoint are its own, and a head that it does not have is the one that would be drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bc2.errors import RecipeError
from bc2.model.model_config import ModelConfig
from bc2.model.transformer import Transformer
from bc2.parallel import build
from bc2.parallel.build import InitialWeights, StartWeights
from bc2.parallel.sharding import TensorShard, shard_of
from bc2.parallel.state import HeldTensors, Stored

CONFIG = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=20, num_layers=2, num_heads=2,
    context_length=8,
)  # fmt: skip


@pytest.mark.parametrize("wanted", [0, 1, 2, 5, 100])
def test_what_is_not_wanted_changes_nothing_and_is_drawn_only_before_what_is(wanted: int) -> None:
    """A rank wants a piece of every third tensor, up to some number of them."""
    model = Transformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(7))
    named = list(model.named_parameters())
    drawn = InitialWeights(CONFIG, 7)
    last = max((i for i in range(len(named)) if i % 3 == 0 and i < 3 * wanted), default=-1)
    with mock.patch.object(build, "draw_weight", wraps=build.draw_weight) as draw:
        for number, (name, parameter) in enumerate(named):
            count = 5 if number % 3 == 0 and number < 3 * wanted else 0
            got = drawn.read(name, TensorShard(tuple(parameter.shape)), 3, count)
            assert torch.equal(got, parameter.detach().flatten()[3 : 3 + count]), name
    assert draw.call_count == last + 1


def with_head(**head: Any) -> ModelConfig:
    return CONFIG.model_copy(update=head)


HEADS = {
    "language": CONFIG,
    "scalar": with_head(head="scalar"),
    "classes": with_head(head="classes", num_classes=5),
}


def drawn(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def held(tensors: dict[str, Tensor]) -> HeldTensors:
    found = HeldTensors()
    for name, tensor in tensors.items():
        found.add(name, TensorShard(tuple(tensor.shape)), 0, tensor)
    return found


def read_all(weights: StartWeights, shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: weights.read(name, TensorShard(tuple(like.shape)), 0, like.numel()).view_as(like)
        for name, like in shapes.items()
    }


@pytest.mark.parametrize("model", HEADS)
@pytest.mark.parametrize("checkpoint", HEADS)
def test_a_head_of_another_kind_alone_is_drawn_from_the_seed(checkpoint: str, model: str) -> None:
    theirs, fresh = drawn(HEADS[checkpoint], 3), drawn(HEADS[model], 7)
    weights = StartWeights(HEADS[model], held(theirs), seed=7)
    assert weights.draws_head == (checkpoint != model)
    *body, head = fresh
    right = {**theirs, **({head: fresh[head]} if weights.draws_head else {})}
    # As often as one likes, and in any order: two models may begin with the same.
    for names in (fresh, dict(reversed(fresh.items()))):
        found = read_all(weights, names)
        assert all(torch.equal(found[name], right[name]) for name in (*body, head))
    assert all(name in weights for name in fresh)
    assert (("score.weight" if model == "language" else "lm_head.weight") in weights) is False


def test_a_tied_head_is_the_embedding_of_the_checkpoint() -> None:
    tied = CONFIG.model_copy(update={"tied": True})
    scalar = HEADS["scalar"]
    theirs = drawn(tied, 3)
    # The same model, and one with another head: that alone is drawn.
    assert read_all(StartWeights(tied, held(theirs), seed=7), theirs).keys() == theirs.keys()
    weights = StartWeights(scalar, held(theirs), seed=7)
    assert weights.draws_head
    found = read_all(weights, drawn(scalar, 7))
    assert torch.equal(found.pop("score.weight"), drawn(scalar, 7)["score.weight"])
    assert all(torch.equal(found[name], theirs[name]) for name in theirs)
    assert found.keys() == theirs.keys()
    # The other way there is nothing to draw.
    back = drawn(scalar, 3)
    found = read_all(StartWeights(tied, held(back), seed=7), theirs)
    assert all(torch.equal(found[name], back[name]) for name in theirs)


def test_a_tied_head_is_not_one_of_its_own() -> None:
    tied = CONFIG.model_copy(update={"tied": True})
    with pytest.raises(RecipeError, match=r"lm_head\.weight \[24, 16\] is missing"):
        StartWeights(CONFIG, held(drawn(tied, 3)), seed=7)
    with pytest.raises(RecipeError, match=r"lm_head\.weight \[24, 16\] is not in the model"):
        StartWeights(tied, held(drawn(CONFIG, 3)), seed=7)


def test_a_rank_reads_its_part_of_a_drawn_head() -> None:
    weights = StartWeights(CONFIG, held(drawn(HEADS["scalar"], 3)), seed=7)
    head = drawn(CONFIG, 7)["lm_head.weight"]
    part = shard_of("lm_head.weight", tuple(head.shape), 1, 2)
    assert torch.equal(weights.read("lm_head.weight", part, 5, 40), part.of(head).flatten()[5:45])


def test_bf16_files_are_read_exactly(tmp_path: Path) -> None:
    """Also parts of matrices, cut by rows, by columns and by thirds."""
    theirs = {name: tensor.bfloat16() for name, tensor in drawn(CONFIG, 3).items()}
    save_file(theirs, tmp_path / "model.safetensors")
    stored = Stored.open([tmp_path / "model.safetensors"])
    weights = StartWeights(CONFIG, stored, seed=7)
    for name, whole in theirs.items():
        for rank in range(2):
            part = shard_of(name, tuple(whole.shape), rank, 2)
            mine = part.of(whole).flatten()
            read = weights.read(name, part, 3, len(mine) - 5)
            assert read.dtype == torch.bfloat16
            assert torch.equal(read, mine[3:-2]), name


def broken(**changes: Tensor | None) -> HeldTensors:
    every: dict[str, Tensor | None] = {**drawn(CONFIG, 3)}
    every |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return held({name: tensor for name, tensor in every.items() if tensor is not None})


@pytest.mark.parametrize(
    ("config", "checkpoint", "message"),
    [
        (CONFIG, broken(model__norm__weight=None), r"model\.norm\.weight \[16\] is missing"),
        (
            CONFIG,
            broken(model__norm__bias=torch.ones(16)),
            r"model\.norm\.bias \[16\] is not in the model",
        ),
        (
            CONFIG,
            broken(model__norm__weight=torch.ones(8)),
            r"model\.norm\.weight is \[8\], not \[16\]",
        ),
        (CONFIG, broken(lm_head__weight=None), r"lm_head\.weight \[24, 16\] is missing"),
        (
            CONFIG,
            broken(score__weight=torch.ones(1, 16)),
            r"score\.weight \[1, 16\] is not in the model",
        ),
        (
            with_head(head="classes", num_classes=3),
            held(drawn(HEADS["classes"], 3)),
            r"score\.weight is \[5, 16\], not \[3, 16\]",
        ),
        (
            with_head(num_layers=1),
            broken(),
            r"model\.layers\.1\..* is not in the model.* and 4 more",
        ),
        # With another head everything else is checked alike.
        (
            HEADS["scalar"],
            broken(model__norm__weight=torch.ones(8)),
            r"model\.norm\.weight is \[8\], not \[16\]",
        ),
        (
            with_head(head="scalar", vocab_size=48),
            broken(),
            r"model\.embed_tokens\.weight is \[24, 16\], not \[48, 16\]",
        ),
    ],
)
def test_anything_else_that_does_not_fit_is_named(
    config: ModelConfig, checkpoint: HeldTensors, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        StartWeights(config, checkpoint, seed=7)
