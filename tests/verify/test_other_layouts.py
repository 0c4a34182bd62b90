"""Which other layouts a run is continued on."""

from __future__ import annotations

from pathlib import Path

import pytest

from bc2.errors import RecipeError
from bc2.parallel.parallel_config import ParallelConfig
from bc2.recipe import load
from bc2.train.rank_layout import RankLayout, recipe_layout
from bc2.train.training_settings import TrainingSettings
from bc2.verify import other_layouts as module
from bc2.verify.other_layouts import layout_on, other_layouts

RECIPE = """
name = "small"
[tokenizer]
vocab_size = 1024
[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_layers = 2
num_heads = 2
context_length = 64
[pretrain]
length = "24 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
device = "cpu"
"""


@pytest.fixture
def settings(tmp_path: Path) -> TrainingSettings:
    (tmp_path / "small.toml").write_text(RECIPE)
    return TrainingSettings.of(load(tmp_path / "small.toml"), trains=False)


@pytest.mark.parametrize(("cores", "ranks"), [(1, []), (2, [2]), (3, [2]), (8, [2, 4])])
def test_the_usual_numbers_that_the_machine_has_cores_for(
    settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch, cores: int, ranks: list[int]
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: set(range(cores)))
    found = other_layouts(settings, recipe_layout(settings, 1), None, None)
    assert [one.ranks for one in found] == ranks
    # 8 sequences a step, 4 at a time where there are so many.
    assert [one.micro_batch for one in found] == [min(4, 8 // n) for n in ranks]


def test_a_usual_number_that_the_batch_does_not_divide_among_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usable_cores", lambda: set(range(8)))
    (tmp_path / "small.toml").write_text(RECIPE)
    sets = ["pretrain.batch_tokens=128", "pretrain.micro_batch=1"]
    two = TrainingSettings.of(load(tmp_path / "small.toml", sets), trains=False)
    found = other_layouts(two, recipe_layout(two, 1), None, None)
    assert [one.ranks for one in found] == [2]


def test_what_was_asked_for_is_taken_or_refused(settings: TrainingSettings) -> None:
    base = recipe_layout(settings, 1)
    found = other_layouts(settings, base, "1,2", ["2:zero=1"])
    assert [one.typed for one in found] == ["2:zero=1", "2"]
    with pytest.raises(RecipeError, match="8 sequences"):
        other_layouts(settings, base, "3", None)


def test_parts_that_do_not_fit_so_many_ranks_are_left_out(settings: TrainingSettings) -> None:
    tensor = RankLayout(4, ParallelConfig(tensor=2, zero=1), 1)
    assert layout_on(settings, tensor, 3).parallel == ParallelConfig(zero=1)
    assert layout_on(settings, tensor, 2).parallel == tensor.parallel
    grouped = RankLayout(4, ParallelConfig(zero=3, zero_group=2), 1)
    assert layout_on(settings, grouped, 1).parallel == ParallelConfig(zero=3)
    assert layout_on(settings, grouped, 2).parallel == grouped.parallel
