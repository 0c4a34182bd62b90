"""Every algorithm may leave [model] to the checkpoint that it begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bc2 import recipe
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.pipeline.completion import completed
from bc2.registry import Draft, Registry, stage_key
from bc2.train.training_settings import TrainingSettings


@pytest.mark.parametrize("name", ["toy", "critic"])
@pytest.mark.parametrize(
    ("overrides", "head"), [([], "language"), (["model.head=scalar"], "scalar")]
)
def test_it_is_the_checkpoints_but_for_overrides(
    toy: Path, name: str, overrides: list[str], head: str
) -> None:
    config = recipe.load("small.toml").get(ModelConfig)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    draft = Draft("checkpoint", "begun", stage_key("checkpoint", 1, {}, []), role="base")
    with Registry.open().stage(draft) as staged:
        save_model(staged.path, config, model.state_dict())
        staged.publish()
    whole = Path(f"{name}.toml").read_text().replace("length", 'init = "begun"\nlength', 1)
    alone = whole.replace('base = "small.toml"\n', "").replace('[model]\nhead = "scalar"\n', "")
    Path("whole.toml").write_text(whole)
    Path("alone.toml").write_text(alone)
    taken = TrainingSettings.of(completed(recipe.load("alone.toml", overrides)))
    written = TrainingSettings.of(completed(recipe.load("whole.toml", [f"model.head={head}"])))
    assert taken.models == written.models
    assert taken.model.head == head
