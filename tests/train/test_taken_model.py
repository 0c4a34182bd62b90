"""A recipe without [model] trains the model of the checkpoint that it begins with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warmed

from bc2 import recipe
from bc2.cli import main
from bc2.errors import RecipeError, RefError
from bc2.model.model_config import ModelConfig
from bc2.model.store import save_model
from bc2.model.transformer import Transformer
from bc2.pipeline.completion import completed
from bc2.pipeline.reach import load_training
from bc2.pipeline.session import Session
from bc2.registry import Artifact, Draft, Registry, stage_key

#: What the run of `on.toml` is, but for its [model].
PRETRAIN = """\
[pretrain]
length = "3 steps"
batch_tokens = 512
micro_batch = 4
sequence_length = 64
precision = "fp32"
device = "cpu"
eval_tokens = 512
sample_prompts = 0
schedule = { warmup = "1 steps" }
"""
#: A shape of another family, with settings that no key had before them.
MODEL = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_layers": 2,
    "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "tied": True, "norm_head": False,
    "context_length": 128,
}  # fmt: skip


@pytest.fixture
def base(small: Path) -> Artifact:
    """A registered model of `MODEL`; in the working directory on.toml and whole.toml, which has
    its [model] written out."""
    artifact = register("other", ModelConfig.model_validate(MODEL))
    begun = PRETRAIN.replace("[pretrain]", '[pretrain]\ninit = "other"')
    (small / "on.toml").write_text(begun)
    table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in MODEL.items())
    (small / "whole.toml").write_text(f'name = "on"\n[model]\n{table}{begun}')
    return artifact


def register(name: str, config: ModelConfig) -> Artifact:
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(3))
    draft = Draft("checkpoint", name, stage_key("checkpoint", 1, {"name": name}, []), role="base")
    with Registry.open().stage(draft) as staged:
        save_model(staged.path, config, model.state_dict())
        return staged.publish()


def train(name: str, *overrides: str) -> Artifact:
    loaded = recipe.load(f"{name}.toml", overrides)
    return Session(Registry.open()).obtain("checkpoint", loaded, command=["bc2"])


def test_it_is_the_run_of_the_recipe_with_that_model_written_out(base: Artifact) -> None:
    made = train("on")
    assert made.manifest.parents[-1] == base.digest
    assert train("whole") == made  # found: it has the same key
    recorded = made.manifest.recipe["model"]
    assert ModelConfig.model_validate(recorded) == ModelConfig.model_validate(MODEL)
    assert recorded == completed(recipe.load("whole.toml")).resolved()["model"]


def test_single_settings_of_it_may_be_set(base: Artifact) -> None:
    shorter = "model.context_length=64"
    assert train("on", shorter).key == train("whole", shorter).key != train("on").key
    with pytest.raises(RecipeError, match="num_layers is 2 there and 3 here") as caught:
        train("on", "model.num_layers=3", shorter)
    assert caught.value.where == "--set model.num_layers=3"


def test_what_does_not_fit_it_is_said_of_its_file(base: Artifact) -> None:
    said = "pretrain.sequence_length = 256 is longer than model.context_length = 128"
    with pytest.raises(RecipeError, match=said):
        train("on", "pretrain.sequence_length=256", "pretrain.micro_batch=1")
    loaded = completed(recipe.load("on.toml", ["model.context_length=64"]))
    assert loaded.where(("model", "vocab_size")) == str(base.path / "model.json")
    assert loaded.where(("model", "context_length")) == "--set model.context_length=64"


def test_it_may_be_that_of_a_recipe_which_takes_its_own(base: Artifact) -> None:
    """Known before the other one is trained."""
    Path("then.toml").write_text(PRETRAIN.replace("[pretrain]", '[pretrain]\ninit = "on.toml"'))
    loaded = completed(recipe.load("then.toml"))
    assert loaded.get(ModelConfig) == ModelConfig.model_validate(MODEL)
    assert Session(Registry.open()).find_inputs("checkpoint", recipe.load("then.toml")) is None
    made = train("then")
    (first,) = Registry.open().list("checkpoint", "on", finished=True)
    assert made.manifest.parents[-1] == first.digest


def test_recipes_that_leave_it_to_each_other(small: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        begun = PRETRAIN.replace("[pretrain]", f'[pretrain]\ninit = "{other}.toml"')
        Path(f"{name}.toml").write_text(begun)
    with pytest.raises(RecipeError, match="name each other as init"):
        train("one")


def test_neither_a_model_nor_one_to_begin_with(base: Artifact) -> None:
    Path("none.toml").write_text(PRETRAIN)
    with pytest.raises(RecipeError, match=r"has no \[model\] section") as caught:
        train("none")
    assert "pretrain.init" in str(caught.value.todo)
    with pytest.raises(RecipeError, match=r"neither has none\.toml, which it begins with"):
        train("on", "pretrain.init=none.toml")
    with pytest.raises(RefError, match="nobody"):
        train("on", "pretrain.init=nobody")
    with pytest.raises(RecipeError, match=r"pretrain\.init: .* string"):
        train("on", "pretrain.init=3")


def test_a_model_that_is_written_in_part_is_not_filled_up(base: Artifact) -> None:
    text = f"[model]\nnum_layers = 2\n{Path('on.toml').read_text()}"
    Path("part.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"missing key model\.vocab_size") as caught:
        train("part")
    assert str(caught.value.todo).endswith("leave [model] out: it is then that of pretrain.init")
    with pytest.raises(RecipeError, match="num_layers is 2 there and 3 here"):
        train("whole", "model.num_layers=3")


def test_commands_that_train_nothing_take_it(
    base: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    """No weights are read: there are none."""
    before = answers(capsys, "whole.toml")
    (base.path / "model.safetensors").unlink()
    assert answers(capsys, "on.toml") == before
    assert before["plan"]["parameters"] == ModelConfig.model_validate(MODEL).num_params()
    assert load_training("on.toml").get(ModelConfig).num_kv_heads == 2


def answers(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, Any]:
    plan = printed(capsys, "plan", name, "--device", "h100")
    shown = printed(capsys, "recipe", "show", name)
    checked = printed(capsys, "recipe", "check", name)
    return {"plan": plan, "show": shown, "ok": checked["ok"]}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as left:
        main([*words, "--json"])
    said = capsys.readouterr()
    assert not left.value.code, said.err
    return json.loads(said.out)


def test_a_run_over_ranks_is_that_of_one_process(base: Artifact) -> None:
    command = [sys.executable, "-P", "-m", "bc2", "pretrain", "on.toml", "--json", "--nproc", "2"]
    done = warmed.run(
        command, env=dict(os.environ), capture_output=True, text=True, children=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["digest"]
    assert train("whole").digest == made


def test_a_registry_that_is_not_this_home_is_looked_in(
    base: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BC2_HOME", str(tmp_path / "empty"))
    inputs = Session(Registry.open(tmp_path / "home")).find_inputs(
        "checkpoint", recipe.load("on.toml")
    )
    assert inputs is not None
    assert inputs.one("init") == base


def test_a_complete_recipe_stays_as_it_is(base: Artifact) -> None:
    loaded = completed(recipe.load("on.toml"))
    assert completed(loaded) == loaded
    shutil.rmtree(base.path)
    assert completed(loaded) == loaded
    assert completed(recipe.load("whole.toml")) == recipe.load("whole.toml")
