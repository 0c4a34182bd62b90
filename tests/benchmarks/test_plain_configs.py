"""The settings of a bare machine against bc2's own."""

from dataclasses import MISSING, fields

import pytest
from gpu_stages import plain_configs as plain

from bc2 import recipe
from bc2.generate.engine_config import EngineConfig
from bc2.generate.sampling_config import SamplingConfig
from bc2.model.model_config import ModelConfig
from bc2.parallel.parallel_config import ParallelConfig
from bc2.train.optimizer_config import AdamWConfig
from bc2.train.pretrain.pretrain_config import PretrainConfig

SAME = [
    (plain.Model, ModelConfig),
    (plain.Layout, ParallelConfig),
    (plain.AdamW, AdamWConfig),
    (plain.Cache, EngineConfig),
    (plain.Sampling, SamplingConfig),
]


@pytest.mark.parametrize(("ours", "real"), SAME)
def test_fields_and_defaults_are_those_of_the_real_class(ours, real):
    found = {f.name: None if f.default is MISSING else f.default for f in fields(ours)}
    expected = {
        name: None if info.is_required() else info.default
        for name, info in real.model_fields.items()
    }
    assert found == expected


def test_a_training_has_what_the_core_reads_of_the_real_one():
    settings = {"length": "1 steps", "batch_tokens": 8192, "micro_batch": 1, "compile": False}
    real = PretrainConfig(**settings, device="cpu")
    ours = plain.Training("cpu", "auto", batch_sequences=2)
    for field in fields(ours):
        if field.name != "optimizer":
            assert getattr(ours, field.name) == getattr(real, field.name), field.name
    assert ours.optimizer.model_dump() == real.optimizer.model_dump()


@pytest.mark.parametrize(
    ("name", "shape", "changed"),
    [("ladder/1.6b", plain.LADDER_1_6B, {}), ("7b", plain.WIDE_7B, {"num_layers": 12})],
)
def test_shapes_are_those_of_the_recipes(name, shape, changed):
    real = recipe.load(name).get(ModelConfig)
    assert shape.model_dump() == real.model_dump() | changed
    assert shape.num_params() == ModelConfig(**shape.model_dump()).num_params()
