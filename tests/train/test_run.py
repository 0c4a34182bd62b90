"""What identifies a run."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from bc2 import recipe
from bc2.pipeline.stage import Input, Inputs
from bc2.registry import stage_key
from bc2.train.algorithm import Algorithm
from bc2.train.pretrain.pretraining import PRETRAINING, Pretraining
from bc2.train.run import Run
from bc2.train.training_settings import TrainingSettings


class Held(Pretraining):
    """Trains a model that is held to another one."""

    inputs = (*Pretraining.inputs, Input("checkpoint", lambda _: None, name="to", optional=True))


def key(algorithm: Algorithm, **digests: str) -> str:
    settings = replace(TrainingSettings.of(recipe.load("tiny")), algorithm=algorithm)
    given: Any = {name: (SimpleNamespace(digest=one),) for name, one in digests.items()}
    return Run(settings, Inputs(given), (), {}, "").key


def test_a_checkpoint_counts_by_what_it_is_for() -> None:
    begun, held = key(Held(), tokens="1", init="2"), key(Held(), tokens="1", to="2")
    assert len({begun, held, key(Held(), tokens="1")}) == 3


def test_pretraining_has_the_keys_of_before() -> None:
    settings = TrainingSettings.of(recipe.load("tiny"))
    sections = {"pretrain": settings.training.keyed(), "model": settings.model.keyed()}
    for digests in (["1"], ["1", "2"]):
        named = dict(zip(("tokens", "init"), digests, strict=False))
        assert key(PRETRAINING, **named) == stage_key("checkpoint", 3, sections, digests)
