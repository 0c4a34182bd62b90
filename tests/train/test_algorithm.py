"""What an algorithm may declare."""

from __future__ import annotations

import pytest

from bc2.parallel.mesh import Mesh
from bc2.recipe import load
from bc2.train.algorithm import ModelRole
from bc2.train.models import make_models
from bc2.train.training_settings import TrainingSettings


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a-b", "a b"])
def test_a_model_is_called_by_a_word(name: str) -> None:
    model = TrainingSettings.of(load("tiny")).model
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        ModelRole(name, model)


def test_models_have_names_of_their_own() -> None:
    settings = TrainingSettings.of(load("tiny"))
    role = ModelRole("critic", settings.model)
    with pytest.raises(ValueError, match="two models of one name: critic, critic"):
        make_models([role, role], settings.training, None, Mesh())
