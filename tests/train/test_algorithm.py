"""What an algorithm may declare."""

from __future__ import annotations

from typing import Any

import pytest

from bc2.parallel.mesh import Mesh
from bc2.recipe import load
from bc2.train.algorithm import Algorithm, ModelRole
from bc2.train.models import make_models
from bc2.train.pretrain.pretraining import Pretraining
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


def declared(**changed: Any) -> Pretraining:
    """A kind of pretraining that says something else."""
    made: Pretraining = type("Declared", (Pretraining,), changed)()
    return made


def test_a_declaration_is_whole() -> None:
    assert declared(version=7).version == 7
    with pytest.raises(ValueError, match="no role 'policy'; there are base, chat"):
        declared(role="policy")

    class Nothing(Algorithm):
        example = objective = open = None  # type: ignore[assignment]

    with pytest.raises(TypeError, match="Nothing does not say its section"):
        Nothing()
