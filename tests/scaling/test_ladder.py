"""A ladder's members: the rule for learning rate and batch, names, order, and wrong recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bc2 import recipe as recipes
from bc2.errors import RecipeError, UsageError
from bc2.model.model_config import ModelConfig
from bc2.recipe import load
from bc2.scaling.ladder import read_ladder, size_label
from bc2.scaling.ladder_config import LadderConfig
from bc2.train.training_settings import TrainingSettings


def test_learning_rate_and_batch_follow_the_size(ladder_home: Path) -> None:
    ladder = read_ladder("micro.toml")
    smallest = ladder.members[0]
    # (2608 / 20640)^(-1/3) = 1.9928, ^(2/3) = 0.25180
    assert smallest.params == 2608
    # 0.0059784, to three digits
    assert smallest.learning_rate == 5.98e-3
    # 512 x 0.2518 = 129 tokens: two sequences of 64, fewer than a micro-batch of 4
    assert (smallest.batch_tokens, smallest.settings.training.micro_batch) == (128, 2)
    assert (smallest.steps, smallest.tokens) == (16, 2048)
    assert smallest.settings.training.schedule.warmup == "2 steps"
    last = ladder.extrapolation
    assert last is not None
    # (82240 / 20640)^(-1/3) = 0.63076, ^(2/3) = 2.5134
    # 0.00189228, to three digits
    assert last.learning_rate == 1.89e-3
    # 1,287 tokens are 20.1 sequences, so five micro-batches of 4
    assert (last.batch_tokens, last.settings.training.micro_batch) == (1280, 4)
    assert (last.steps, last.tokens) == (10, 12800)


def test_at_the_reference_the_recipe_holds(ladder_home: Path) -> None:
    (plain,) = [one for one in read_ladder("micro.toml").members if one.tokens == 30 * 512]
    assert plain.learning_rate == 3e-3
    assert plain.batch_tokens == 512


def test_what_a_member_says_itself_is_taken(ladder_home: Path) -> None:
    own = next(one for one in read_ladder("micro.toml").members if one.batch_tokens == 640)
    assert own.learning_rate == 2e-3
    # ten sequences: no whole number of micro-batches of 4, but two of 2
    assert own.settings.training.micro_batch == 2
    assert (own.steps, own.tokens) == (29, 18560)


def test_exponents_are_settings(ladder_home: Path) -> None:
    changed = [
        "ladder.learning_rate_exponent=0",
        "ladder.batch_exponent=0",
        "ladder.warmup_share=0",
    ]
    smallest = read_ladder("micro.toml", changed).members[0]
    assert (smallest.learning_rate, smallest.batch_tokens) == (3e-3, 512)
    assert smallest.settings.training.schedule.warmup == "1 steps"


def test_counts_are_those_of_the_model(ladder_home: Path) -> None:
    one = read_ladder("micro.toml").members[0]
    # one layer of 4 x 16^2 + 3 x 16 x 32 weights and 3 x 16 of norms; 1,024 x 16 twice beside
    assert (one.params, one.params_total) == (2608, 2608 + 2 * 16384)
    # 6 x (2,560 of the layer and 16,384 of the head) + 12 x 16 x 64 of attention
    assert one.flops == 2048 * (6 * (2560 + 16384) + 12 * 16 * 64)
    assert one.flops_6nd == 6 * 2608 * 2048


def test_members_come_in_the_order_of_their_compute_and_have_names(ladder_home: Path) -> None:
    ladder = read_ladder("micro.toml", seeds=3)
    assert [one.name for one in ladder.members] == [
        "micro-2.61k", "micro-2.61k-seed1", "micro-2.61k-seed2", "micro-20.6k-30steps",
        "micro-20.6k-18Ktokens",
    ]  # fmt: skip
    assert [one.seed for one in ladder.members] == [0, 1, 2, 0, 0]
    flops = [one.flops for one in ladder.members]
    assert flops == sorted(flops)
    assert ladder.extrapolation is not None
    assert ladder.extrapolation.name == "micro-82.2k"


def test_a_member_is_the_run_of_its_overrides(ladder_home: Path) -> None:
    for one in read_ladder("micro.toml", ["pretrain.z_loss=0"], seeds=2).members:
        alone = TrainingSettings.of(load("micro.toml", one.overrides))
        assert alone == one.settings
        assert one.settings.training.z_loss == 0


def test_the_ladder_enters_no_key() -> None:
    assert load("ladder-cpu").get(LadderConfig).keyed() == {}


@pytest.mark.parametrize(
    ("params", "label"),
    [(999, "999"), (106_816, "107k"), (3_410_176, "3.41m"), (1_565_600_960, "1.57b")],
)
def test_sizes_in_words(params: int, label: str) -> None:
    assert size_label(params) == label


def test_the_papers_ladder_takes_its_recipes() -> None:
    ladder = read_ladder("ladder")
    assert [one.label for one in ladder.members] == [
        "11m", "52m", "108m", "308m", "835m", "1.6b", "3b"
    ]  # fmt: skip
    for one in ladder.members:
        alone = load(f"ladder/{one.label}").get(ModelConfig)
        assert one.settings.model == alone
        assert one.settings.training.length == "1T tokens"
    # (11506560 / 6476271616)^(-1/3) = 8.256, ^(2/3) = 0.014671: 61,536 tokens are 15 sequences
    assert ladder.members[0].learning_rate == 1.65e-3
    assert ladder.members[0].batch_tokens == 15 * 4096


def test_the_cpu_ladder_is_as_it_says() -> None:
    ladder = read_ladder("ladder-cpu")
    assert len(ladder.members) == 7
    last = ladder.extrapolation
    assert last is not None
    assert last.flops >= 4 * ladder.members[-1].flops
    # On one path: tokens grow with the FLOPs of a token to about 0.55.
    path = (*ladder.members, last)
    size, tokens = np.log([[one.flops / one.tokens, one.tokens] for one in path]).T
    slope, height = np.polyfit(size, tokens, 1)
    assert slope == pytest.approx(0.55, abs=0.02)
    assert np.abs(tokens - height - slope * size).max() < 0.05
    # measured on the same held-out windows
    assert len({one.settings.training.eval_tokens for one in [*ladder.members, last]}) == 1
    assert {one.settings.training.max_epochs for one in ladder.members} == {4}


def test_chosen_by_name_with_or_without_the_ladders(ladder_home: Path) -> None:
    ladder = read_ladder("micro.toml")
    (one,) = ladder.chosen(["2.61k"])
    assert ladder.chosen(["micro-2.61k", "2.61k"]) == [one]
    assert [each.label for each in ladder.chosen(["82.2k"], extrapolate=True)] == ["82.2k"]
    assert len(ladder.chosen(extrapolate=True)) == 4
    with pytest.raises(UsageError, match=r"no member 'micro-2\.6k'") as caught:
        ladder.chosen(["micro-2.6k"])
    assert caught.value.todo == "did you mean 'micro-2.61k'?"
    with pytest.raises(UsageError, match="is the extrapolation") as caught:
        ladder.chosen(["82.2k"])
    assert caught.value.todo == "add --extrapolate"
    with pytest.raises(UsageError, match=r"has no \[ladder.extrapolation\]"):
        read_ladder("ladder").chosen(extrapolate=True)


SHAPE = "model = { hidden_size = 32, intermediate_size = 64, num_layers = 2, num_heads = 2 }"

WRONG = {
    "a length": (f"{SHAPE}\n", "needs a length"),
    "a size": ('length = "2K tokens"\n', "exactly one of them; got neither"),
    "one size": (f'{SHAPE}\nrecipe = "mini"\nlength = "2K tokens"\n', "got both"),
    "a known length": (f'{SHAPE}\nlength = "2 epochs"\n', "to be known beforehand"),
    "a recipe's known length": ('recipe = "mini"\n', "length of mini is in epochs"),
    "another run": (f'{SHAPE}\nlength = "30 steps"\n', "same run: ladder.members.0 and"),
    "whole sequences": (f'{SHAPE}\nlength = "9 steps"\nbatch_tokens = 100\n', "no multiple of"),
    "a recipe": ('recipe = "ladder/12m"\n', "no such recipe"),
    "the right key": (f'{SHAPE}\nlenght = "9 steps"\n', "unknown key ladder.members"),
    "a shape": (f'{SHAPE.replace("heads = 2", "heads = 3")}\nlength = "9 steps"\n', "divisible"),
}


@pytest.mark.parametrize("missing", WRONG)
def test_a_wrong_member_is_named(ladder_home: Path, missing: str) -> None:
    table, said = WRONG[missing]
    path = ladder_home / "wrong.toml"
    path.write_text(f'base = "micro.toml"\n[ladder]\nreference_params = 20_640\n'
                    f'[[ladder.members]]\n{SHAPE}\nlength = "30 steps"\n'
                    f"[[ladder.members]]\n{table}")  # fmt: skip
    with pytest.raises(RecipeError, match=said):
        read_ladder(str(path))


def test_a_recipe_without_a_ladder(ladder_home: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no \[ladder\] section"):
        read_ladder("small.toml")


def test_what_is_each_members_own_cannot_be_set(ladder_home: Path) -> None:
    with pytest.raises(RecipeError, match=r"pretrain\.length is each member's own") as caught:
        read_ladder("micro.toml", ["pretrain.length=3 steps"])
    assert caught.value.where == "--set pretrain.length=3 steps"
    changed = read_ladder("micro.toml", ["ladder.members.1.length=1K tokens"])
    assert changed.members[0].tokens == 1024


def test_no_member_where_the_list_is_empty(ladder_home: Path) -> None:
    with pytest.raises(RecipeError, match="at least 1 item"):
        recipes.load("micro.toml", ["ladder.members=[]"]).get(LadderConfig)


def test_no_member_begins_with_another_run(ladder_home: Path) -> None:
    with pytest.raises(RecipeError, match="weights that the seed draws") as caught:
        read_ladder("micro.toml", ["pretrain.init=other"])
    assert caught.value.where == "--set pretrain.init=other"


def test_a_member_cannot_take_back_what_the_recipe_has(ladder_home: Path) -> None:
    """No override says that a setting has no value."""
    (ladder_home / "grouped.toml").write_text(
        'base = "micro.toml"\n[model]\nnum_kv_heads = 1\n[ladder]\nreference_params = 20_640\n'
        '[[ladder.members]]\nrecipe = "micro.toml"\nlength = "30 steps"\n'
    )
    with pytest.raises(RecipeError, match=r"micro\.toml has another model\.num_kv_heads"):
        read_ladder("grouped.toml")
