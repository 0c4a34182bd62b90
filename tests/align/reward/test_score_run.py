"""The scores of a trained model on its own held-out pairs: those that its run has recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sft_runs import obtain

from bc2.align.reward.score_answers import ScoreScale
from bc2.align.reward.score_data import open_data
from bc2.align.reward.score_figures import score_figures
from bc2.align.reward.score_models import score_models
from bc2.errors import DataError
from bc2.registry import Registry


@pytest.mark.parametrize("options", [(), ("reward.lora.rank=4",)], ids=["whole", "adapter"])
def test_a_run_and_its_model_say_the_same(preference: Path, options: tuple[str, ...]) -> None:
    made = obtain("reward.toml", "reward.length=3 steps", "reward.eval_pairs=100000", *options)
    registry, facts = Registry.open(), made.manifest.facts
    pairs = registry.newest("pairs")
    with open_data(registry, pairs.ref, None) as data:
        found = score_models({"judge": made}, data, torch.device("cpu"), torch.float32)
        figures = score_figures(data, found, {"judge": ScoreScale.of(made)})
        table = data.pairs.table("heldout")
    chosen, rejected = found.scores[0][table.chosen], found.scores[0][table.rejected]
    both = np.concatenate([chosen, rejected])
    assert facts["heldout_pairs"] == figures["pairs"] == len(table) > 10
    assert facts["heldout_loss"] == pytest.approx(
        np.logaddexp(0, rejected - chosen).mean(), abs=1e-5
    )
    assert facts["score_centre"] == pytest.approx(both.mean(), abs=1e-5)
    assert facts["score_scale"] == pytest.approx(both.std(), abs=1e-5)
    said = figures["models"]["judge"]
    assert said["preference"]["accuracy"] == pytest.approx(facts["preference"]["accuracy"])
    assert (said["centre"], said["scale"]) == (facts["score_centre"], facts["score_scale"])


def test_a_split_without_answers_names_the_other(preference: Path) -> None:
    obtain("reward.toml", "reward.length=1 steps", "pairs.heldout_fraction=0")
    registry = Registry.open()
    pairs = registry.newest("pairs")
    with (
        pytest.raises(DataError, match="no answers in its split 'heldout'") as caught,
        open_data(registry, pairs.ref, None),
    ):
        pass
    assert "--split train" in str(caught.value.todo)
    with open_data(registry, pairs.ref, "train") as data:
        assert data.count == 400
