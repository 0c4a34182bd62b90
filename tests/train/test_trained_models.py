"""What is saved of the models that a run trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bc2.parallel.sharding import TensorShard
from bc2.train.engines.base import Engine, EngineState
from bc2.train.trained_models import TrainedModel

SHAPES = {"norm": (4,), "up.weight": (4, 4), "up.adapter.down": (2, 4)}
ADAPTER = ["up.adapter.down"]


def engine(*, adapters: bool = True) -> Engine:
    made = SimpleNamespace(
        parts={name: TensorShard(shape) for name, shape in SHAPES.items()},
        trained_names=frozenset(ADAPTER),
        adapters=print if adapters else None,
        snapshot=lambda frozen: EngineState(),
    )
    return cast(Engine, made)


@pytest.mark.parametrize(
    ("adapters", "alone", "names"),
    [(True, True, ADAPTER), (True, False, sorted(SHAPES)), (False, False, None)],
)
def test_what_the_configuration_does_not_tell_is_named(
    adapters: bool, alone: bool, names: list[str] | None
) -> None:
    objective: Any = None
    model = TrainedModel(engine(adapters=adapters), objective, lambda step: 0.0, 1.0, alone)
    shapes = model.snapshot().shapes
    assert shapes == (None if names is None else {name: SHAPES[name] for name in names})
