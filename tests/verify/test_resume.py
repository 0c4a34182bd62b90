"""What is asked of a verification before any run is made."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bc2.errors import ResourceError
from bc2.pipeline.stage import Inputs
from bc2.recipe import load
from bc2.registry import Registry
from bc2.train.rank_layout import recipe_layout
from bc2.train.training_settings import TrainingSettings
from bc2.verify import attempts
from bc2.verify.resume import ResumeRequest, verify_resume


def tokens_of(registry: Registry) -> Inputs:
    return Inputs({"tokens": tuple(registry.list("tokens"))})


def test_there_must_be_room_for_the_checkpoints(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("no run is to be started")

    monkeypatch.setattr(attempts.subprocess, "Popen", started)
    registry = Registry.open()
    settings = TrainingSettings.of(load("small.toml"))
    request = ResumeRequest(settings, tokens_of(registry), recipe_layout(settings, 1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match="the checkpoints of the tried runs need") as caught:
        verify_resume(request, registry)
    assert "BC2_HOME" in str(caught.value.todo)
    assert not list(registry.staging.glob("*"))


@pytest.mark.parametrize(("warmup", "tried"), [("4 steps", "3 steps"), ("0 tokens", "0 steps")])
def test_the_tried_runs_warm_up_if_the_recipe_does(small: Path, warmup: str, tried: str) -> None:
    settings = TrainingSettings.of(load("small.toml", [f"pretrain.schedule.warmup={warmup}"]))
    inputs = tokens_of(Registry.open())
    request = ResumeRequest(settings, inputs, recipe_layout(settings, 1), steps=12)
    schedule = {"shape": "cosine", "warmup": tried, "min_ratio": 0.1}
    assert request.replaced()["schedule"] == schedule
